#!/usr/bin/env bash
# Runs the commands of docs/raspberry-pi.md in a Debian tree: follow-page.sh PACKAGE TREE
# The commands are the page's `sh follow` blocks, run in order by a user named pi in a tree of the package's architecture, under
# qemu-user if that is a foreign one. The tree is not modified. Needs root and the network.
#
# Differences to a board, because nothing is booted:
#   systemctl  is a stand-in that runs ExecStartPre and ExecStart of the installed unit as its user, with its data folder
#   mosquitto  is started by this script once it is installed
#   journal    is a file
set -euo pipefail
here=$(dirname "$(realpath "$0")")

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

[ $# = 2 ] || fail 'usage: follow-page.sh PACKAGE TREE'
package=$(realpath "$1") tree=$(realpath "$2")
[ "$(id -u)" = 0 ] || fail 'run as root: packages are installed'
# In namespaces, so that no mount and no process is left behind and no other Sedge or broker interferes.
if [ "${SEDGE_FOLLOW:-}" != inside ]; then
    SEDGE_FOLLOW=inside exec unshare --mount --propagation private --pid --fork --kill-child "$0" "$package" "$tree"
fi

mount -t proc proc /proc
source "$here/../cross/overlay.sh"
overlay "$tree" 2g
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Written by the installer of a board, but not by debootstrap.
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"

# apt uses the network of the machine, the services a separate one.
unshare --net sleep infinity &
alone=$!
until [ "$(readlink "/proc/$alone/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do :; done
nsenter --target "$alone" --net ip link set lo up
# on_the_board NETWORK COMMAND...: NETWORK is `machine` or `alone`.
on_the_board() {
    local net=()
    [ "$1" = machine ] || net=(nsenter --target "$alone" --net)
    shift
    "${net[@]}" chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive HOME=/home/pi "$@"
}

# The user pi and the package.
chroot "$root" useradd --create-home pi
cp "$package" "$root/home/pi/"
install -d -m 755 "$root/usr/local/bin"
# The commands already run as root, so sudo only runs its arguments.
cat >"$root/usr/local/bin/sudo" <<'sh'
#!/bin/sh
exec "$@"
sh
cat >"$root/usr/local/bin/systemctl" <<'sh'
#!/bin/bash
# `restart UNIT` without a running systemd.
[ "$1" = restart ] || { echo "systemctl: this stand-in supports only restart, not: $*" >&2; exit 1; }
unit=/usr/lib/systemd/system/${2%.service}.service
user=$(sed -n 's/^User=//p' "$unit")
state=/var/lib/$(sed -n 's/^StateDirectory=//p' "$unit")
install -d -o "$user" -g "$user" -m 700 "$state"
as="setpriv --reuid=$user --regid=$user --init-groups --no-new-privs"
[ ! -e /run/stand-in.pid ] || { kill "$(cat /run/stand-in.pid)"; rm /run/stand-in.pid; }
for step in $(sed -n 's/^ExecStartPre=-\{0,1\}//p' "$unit" | tr ' ' '\001'); do
    $as $(echo "$step" | tr '\001' ' ') || exit 1
done
cd "$state" || exit 1
$as $(sed -n 's/^ExecStart=//p' "$unit") >/var/log/stand-in.log 2>&1 &
echo $! >/run/stand-in.pid
# As with Type=notify, returns when the service is ready. An emulated service also needs time to reach its broker.
is_ready() {
    exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | grep -q 200
} 2>/dev/null
until (is_ready); do
    sleep 0.2
    kill -0 "$(cat /run/stand-in.pid)" || { cat /var/log/stand-in.log; exit 1; }
done
until mosquitto_sub -W 5 -C 1 -t 'sedge/+/status' | grep -q '"online"'; do sleep 0.2; done
sh
chmod 755 "$root/usr/local/bin/"*
# Packages must not start services without a running systemd.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get update --quiet --quiet ||
    { printf 'skipped: the commands were NOT run, because the servers of Debian cannot be reached\n'; exit 0; }

mapfile -d '' commands < <(awk '/^```sh follow$/ { on = 1; next } on && /^```$/ { on = 0; printf "%c", 0; next } on' "$here/../docs/raspberry-pi.md")
[ "${#commands[@]}" = 5 ] || fail "the page has ${#commands[@]} commands instead of five"
start=$SECONDS
for command in "${commands[@]}"; do
    printf '$ %s' "$command"
    # In the home folder of pi; all commands run as root.
    net=alone
    case $command in *apt-get*) net=machine ;; esac
    said=$(on_the_board "$net" timeout 300 sh -c "cd; $command" 2>&1) || {
        printf '%s\n' "$said"
        cat "$root/var/log/stand-in.log" 2>/dev/null || true
        fail "the page's command failed: $command"
    }
    printf '%s\n' "$said" | tail -n 5
    if [ -x "$root/usr/sbin/mosquitto" ] && [ ! -e "$root/run/mosquitto" ]; then
        on_the_board alone install -d -o mosquitto /run/mosquitto
        on_the_board alone /usr/sbin/mosquitto -d -c /etc/mosquitto/mosquitto.conf
    fi
done
case $said in
    *alerts/threshold-alert*'"status":"firing"'*) ;;
    *) fail "the last command shows no alert: $said" ;;
esac
printf '%s: the commands of the page reached the first alert in %d s\n' "${package##*/}" $((SECONDS - start))
