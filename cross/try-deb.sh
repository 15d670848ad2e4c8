#!/usr/bin/env bash
# Installs a package into a Debian tree of its architecture, uses it there, upgrades, removes and purges it:
# try-deb.sh PACKAGE TREE. Needs root; the tree is not changed. One for another architecture needs qemu-user-static:
#   debootstrap --arch=arm64 --variant=minbase --include=systemd,init-system-helpers bookworm TREE
set -euo pipefail

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

[ $# = 2 ] || fail 'usage: try-deb.sh PACKAGE TREE'
package=$(realpath "$1") tree=$(realpath "$2")
[ "$(id -u)" = 0 ] || fail 'become root: packages are installed as root'
# A namespace of its own: whatever happens, no mount stays behind.
if [ "${SEDGE_TRY_DEB:-}" != inside ]; then
    SEDGE_TRY_DEB=inside exec unshare --mount --propagation private "$0" "$package" "$tree"
fi

# The changes are kept in memory, away from the tree.
mount -t tmpfs -o size=1g none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
root=/mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" none "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"

inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
must() { "$@" || fail "failed: $*"; }
install() { must dpkg --root="$root" --force-confdef --force-confold --install "$package" >&2; }

install
must inside getent passwd sedge >&2
[ "$(stat -c %a "$root/var/lib/sedge")" = 700 ] || fail '/var/lib/sedge can be read by others'
[ -L "$root/etc/systemd/system/multi-user.target.wants/sedge.service" ] || fail 'it does not start with the board'
for page in "$root"/usr/share/man/man1/sedge*.1.gz; do must gzip --test "$page"; done
must bash -n "$root/usr/share/bash-completion/completions/sedge"

cat >"$root/etc/sedge/conf.d/here.toml" <<'toml'
[node]
name = "tried"
[functions]
paths = ["/usr/share/sedge/functions/threshold-alert"]
toml
must inside setpriv --reuid=sedge --regid=sedge --clear-groups sedge check >&2
if inside sedge demo --help >/dev/null 2>&1; then
    must inside sedge demo --messages 300 --json >&2
fi

echo state >"$root/var/lib/sedge/kept"
install
[ -e "$root/var/lib/sedge/kept" ] || fail 'an upgrade lost the state'
grep -q tried "$root/etc/sedge/conf.d/here.toml" || fail 'an upgrade lost the configuration'

must dpkg --root="$root" --remove sedge >&2
[ -e "$root/var/lib/sedge/kept" ] || fail 'removing lost the state'
[ ! -e "$root/usr/bin/sedge" ] || fail 'removing left the program'
must dpkg --root="$root" --purge sedge >&2
for path in etc/sedge var/lib/sedge usr/share/sedge usr/lib/systemd/system/sedge.service usr/lib/systemd/system/sedge.service.d \
    etc/systemd/system/multi-user.target.wants/sedge.service; do
    [ ! -e "$root/$path" ] || fail "purging left /$path: $(find "$root/$path")"
done
! inside getent passwd sedge || fail 'purging left the user'
printf '%s: installed, used, upgraded, removed and purged\n' "${package##*/}"
