#!/usr/bin/env bash
# Installs a package in a Debian tree of its architecture, runs, upgrades, removes and purges it: try-deb.sh PACKAGE TREE [OTHER].
# Needs root; the tree is not modified. `scripts/need.sh tree-arm64` makes one. OTHER is another build of Sedge for the same board,
# and must replace the first.
set -euo pipefail

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

[ $# = 2 ] || [ $# = 3 ] || fail 'usage: try-deb.sh PACKAGE TREE [OTHER]'
package=$(realpath "$1") tree=$(realpath "$2") other=${3:+$(realpath "$3")}
name=$(dpkg-deb --field "$package" Package) architecture=$(dpkg-deb --field "$package" Architecture)
[ "$(id -u)" = 0 ] || fail 'run as root: packages are installed'
# In a mount namespace, so that no mount is left behind.
if [ "${SEDGE_TRY_DEB:-}" != inside ]; then
    SEDGE_TRY_DEB=inside exec unshare --mount --propagation private "$0" "$package" "$tree" ${other:+"$other"}
fi

source "$(dirname "$0")/overlay.sh"
overlay "$tree" 1g

must() { "$@" || fail "failed: $*"; }
install() {
    cp "$1" "$root/tmp/package.deb"
    must inside dpkg --force-confdef --force-confold --install /tmp/package.deb >&2
}
# Runs a command that must fail with a reason.
refused() {
    local why=$1 said
    shift
    if said=$("$@" 2>&1); then fail "not refused: $*"; fi
    grep -q "$why" <<<"$said" || fail "refused without '$why': $said"
}

[ "$(inside dpkg --print-architecture)" = "$architecture" ] || fail "$tree is not a tree for $architecture"
if [[ $(dpkg-deb --field "$package" Pre-Depends) == *libc6* ]]; then
    cp "$package" "$root/tmp/package.deb"
    cp "$root/var/lib/dpkg/status" /mnt/status
    sed -i '/^Package: libc6$/,/^$/s/^Version: .*/Version: 2.28-10/' "$root/var/lib/dpkg/status"
    refused 'pre-depends on libc6 (>= 2.31)' inside dpkg --install /tmp/package.deb
    [ ! -e "$root/usr/bin/sedge" ] || fail 'a package was unpacked although the glibc is too old'
    cp /mnt/status "$root/var/lib/dpkg/status"
fi
if [ "$architecture" = armhf ] && [[ $name != *-static ]]; then
    mkdir /mnt/control
    dpkg-deb --control "$package" /mnt/control
    mkdir "$root/tmp/old"
    printf '#!/bin/sh\necho armv6l\n' >"$root/tmp/old/uname"
    chmod +x "$root/tmp/old/uname"
    cp /mnt/control/preinst "$root/tmp/preinst"
    refused "install $name-static instead" inside PATH=/tmp/old:/usr/bin:/bin DPKG_MAINTSCRIPT_PACKAGE="$name" sh /tmp/preinst install
fi

install "$package"
must inside getent passwd sedge >&2
[ "$(stat -c %a "$root/var/lib/sedge")" = 700 ] || fail 'other users can read /var/lib/sedge'
[ -L "$root/etc/systemd/system/multi-user.target.wants/sedge.service" ] || fail 'it does not start with the board'
for page in "$root"/usr/share/man/man1/sedge*.1.gz; do must gzip --test "$page"; done
must bash -n "$root/usr/share/bash-completion/completions/sedge"

echo 'node.name = "tried"' >"$root/etc/sedge/conf.d/here.toml"
# The example functions must be compiled, which the runtime-only build cannot do.
is_full=
if inside sedge demo --help >/dev/null 2>&1; then
    is_full=yes
    echo 'functions.paths = ["/usr/share/sedge/functions/threshold-alert"]' >>"$root/etc/sedge/conf.d/here.toml"
fi
must inside setpriv --reuid=sedge --regid=sedge --clear-groups sedge check >&2
[ -z "$is_full" ] || must inside sedge demo --messages 300 --json >&2

echo state >"$root/var/lib/sedge/kept"
install "$package"
[ -e "$root/var/lib/sedge/kept" ] || fail 'an upgrade lost the state'
grep -q tried "$root/etc/sedge/conf.d/here.toml" || fail 'an upgrade lost the configuration'

if [ -n "$other" ]; then
    install "$other"
    # Purging the first must not delete the files of the second.
    must inside dpkg --purge "$name" >&2
    name=$(dpkg-deb --field "$other" Package)
    must inside setpriv --reuid=sedge --regid=sedge --clear-groups sedge --version >&2
    [ -e "$root/var/lib/sedge/kept" ] || fail "$name lost the state when it replaced the other package"
    grep -q tried "$root/etc/sedge/conf.d/here.toml" || fail "$name lost the configuration when it replaced the other package"
    [ -e "$root/etc/sedge/sedge.toml" ] || fail "$name has no /etc/sedge/sedge.toml after it replaced the other package"
fi

must inside dpkg --remove "$name" >&2
[ -e "$root/var/lib/sedge/kept" ] || fail 'removing lost the state'
[ ! -e "$root/usr/bin/sedge" ] || fail 'removing left the program'
must inside dpkg --purge "$name" >&2
for path in etc/sedge var/lib/sedge usr/share/sedge usr/lib/systemd/system/sedge.service usr/lib/systemd/system/sedge.service.d \
    etc/systemd/system/multi-user.target.wants/sedge.service; do
    [ ! -e "$root/$path" ] || fail "purging left /$path: $(find "$root/$path")"
done
! inside getent passwd sedge || fail 'purging left the user'
printf '%s: installed, run, upgraded, removed and purged\n' "${package##*/}"
