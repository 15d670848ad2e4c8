#!/usr/bin/env bash
# Boots an emulated board, installs a package, pushes a function to it and cuts its power repeatedly: boot-deb.sh PACKAGE
# The board has Debian's kernel and systemd, so that the unit, the process sandbox and compiled code are tested on a kernel of
# its architecture. Sensors, broker and upstream run on this machine. Each message makes an alert that depends on the one before,
# so that a lost, repeated or reordered message is detected. Then attacks it (boot-attacks.sh), unless SEDGE_ATTACKS=0. Needs root,
# and the network once.
set -euo pipefail
cd "$(dirname "$0")/.."
source cross/boot-attacks.sh

fail() {
    printf 'sedge: %s\n' "$*" >&2
    [ ! -s "${work:-}/console" ] || printf 'sedge: the last lines of the console:\n%s\n' "$(tail -n 40 "$work/console")" >&2
    exit 1
}

[ $# = 1 ] || fail 'usage: boot-deb.sh PACKAGE'
package=$(realpath "$1")
architecture=$(dpkg-deb --field "$package" Architecture)
tree=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools/bookworm-$architecture
board=$tree.board
cuts=${SEDGE_CUTS:-3} messages=${SEDGE_MESSAGES:-20000} sensors=4
[ "$(id -u)" = 0 ] || fail 'run as root: the disk image of the board is made'
name=$(dpkg-deb --field "$package" Package)
# A Pi 3 and a Pi 2.
case $architecture in
    arm64) emulator=(qemu-system-aarch64 -machine virt -cpu cortex-a53) kernel=linux-image-cloud-arm64 code=aarch64 ;;
    armhf) emulator=(qemu-system-arm -machine virt,highmem=off -cpu cortex-a7) kernel=linux-image-armmp code=armv7 ;;
    *) fail "no board is known for $package" ;;
esac
scripts/need.sh cargo cc mosquitto qemu board "tree-$architecture"

# Makes the disk image once: the Debian tree with a kernel, and a service that runs the script on the second disk.
make_board() {
    source cross/overlay.sh
    overlay "$tree" 3g
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    inside apt-get update --quiet --quiet
    # Only the drivers of the emulated machine.
    mkdir -p "$root/etc/initramfs-tools/conf.d"
    echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/board"
    printf '%s\n' virtio_pci virtio_mmio virtio_blk virtio_net ext4 >"$root/etc/initramfs-tools/modules"
    inside DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$kernel" initramfs-tools systemd-sysv >&2
    echo board >"$root/etc/hostname"
    printf '127.0.0.1 localhost board\n' >"$root/etc/hosts"
    echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
    printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' >"$root/etc/systemd/network/board.network"
    cat >"$root/etc/systemd/system/board.service" <<'unit'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/sh -c 'mount -o ro /dev/vdb /mnt && exec sh /mnt/board.sh'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyAMA0
[Install]
WantedBy=multi-user.target
unit
    inside systemctl enable systemd-networkd.service board.service >&2
    inside systemctl mask serial-getty@ttyAMA0.service apt-daily.timer apt-daily-upgrade.timer >&2
    inside apt-get clean
    rm -rf "$board.new"
    mkdir "$board.new"
    cp "$(ls "$root"/boot/vmlinuz-*)" "$board.new/kernel"
    cp "$(ls "$root"/boot/initrd.img-*)" "$board.new/initrd"
    umount --recursive "$root/dev" "$root/proc"
    mkfs.ext4 -q -d "$root" "$board.new/disk" 1500M
    mv "$board.new" "$board"
}
if [ "${SEDGE_BOOT:-}" = image ]; then
    make_board
    exit
fi
if [ ! -e "$board/disk" ]; then
    printf 'sedge: making a board image from %s, once, in a few minutes\n' "$tree" >&2
    SEDGE_BOOT=image unshare --mount --propagation private "$0" "$package"
fi

cargo build --quiet --package sedge >&2
scripts/guests.sh build >&2
sedge=$(realpath "${CARGO_TARGET_DIR:-target}/debug/sedge")
work=$(mktemp -d)
mkdir "$work/kit"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

# One broker for sensors and upstream. It keeps running, so that losses are the board's.
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n' $port >"$work/mosquitto.conf"
"${SEDGE_MOSQUITTO:-/usr/sbin/mosquitto}" -c "$work/mosquitto.conf" >"$work/mosquitto.log" 2>&1 &
"$sedge" keygen --out "$work/ops.pem" >&2

cp "$package" "$work/kit/package.deb"
cp "$work/ops.pub.pem" "$work/kit/"
cat >"$work/kit/here.toml" <<toml
[node]
name = "board"
[mqtt]
url = "mqtt://10.0.2.2:$port"
[upstream]
url = "mqtt://10.0.2.2:$port"
topic_prefix = "upstream/"
fold_secs = 0
[store]
max_bytes = $store_bytes
dead_letter_max_bytes = $store_bytes
parked_max_bytes = $store_bytes
state_max_bytes = $store_bytes
[deploy.keys.ops]
file = "/etc/sedge/keys/ops.pub.pem"
native_code = true
toml
# Installs the package, and prints the state of the processes.
cat >"$work/kit/board.sh" <<'sh'
set -eu
echo "board: $(uname -srm)"
if ! [ -x /usr/bin/sedge ]; then
    install -D -m 644 /mnt/ops.pub.pem /etc/sedge/keys/ops.pub.pem
    install -D -m 644 /mnt/here.toml /etc/sedge/conf.d/here.toml
    dpkg --install /mnt/package.deb
    # dpkg syncs its own files only. The first power cut may come sooner than the kernel writes the configuration.
    sync
fi
until systemctl --quiet is-active sedge; do sleep 1; done
main=$(systemctl show --property MainPID --value sedge)
until grep --quiet . "/proc/$main/task/$main/children"; do sleep 1; done
sleep 5
for process in "$main" $(cat "/proc/$main/task/"*/children); do
    sandbox=$(grep -E '^(Name|NoNewPrivs|Seccomp|Seccomp_filters):' "/proc/$process/status" | tr '\t\n' '  ')
    group=$(sed -n 's/^0:://p' "/proc/$process/cgroup")
    echo "board: cgroup ${group##*/} weight $(cat "/sys/fs/cgroup$group/cpu.weight")"
    echo "board: process ${sandbox}Mapped: $(grep -c ' rwx' "/proc/$process/maps") rwx $(grep -c ' r-x.*memfd' "/proc/$process/maps") sealed code"
done
journalctl --unit sedge --boot --no-pager --output cat | sed 's/^/board: log: /'
echo "board: inspected"
sh
watch_service >>"$work/kit/board.sh"
truncate --size 100M "$work/kit.disk"
mkfs.ext4 -q -d "$work/kit" "$work/kit.disk"
cp --sparse=always "$board/disk" "$work/disk"

# What the board has written outlives the emulator in this machine's memory, so syncs need not reach this machine's disk (unsafe):
# on a busy one they take seconds.
power_on() {
    "${emulator[@]}" -accel tcg,thread=multi -smp 2 -m 512 -nographic -no-reboot \
        -kernel "$board/kernel" -initrd "$board/initrd" -append 'root=/dev/vda rw console=ttyAMA0 quiet' \
        -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" -drive "file=$work/kit.disk,format=raw,if=virtio,readonly=on" \
        -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= </dev/null >"$work/console" 2>&1 &
    machine=$!
}
cut_power() {
    kill -KILL "$machine"
    wait "$machine" 2>/dev/null || true
}
# until_true SECONDS WHAT COMMAND...
until_true() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $until ] || fail "timed out waiting for: $what"
        kill -0 "$machine" 2>/dev/null || fail "the emulator exited while waiting for: $what"
        sleep 0.2
    done
}
is_online() { [[ $(mosquitto_sub -p $port -W 2 -C 1 -t sedge/board/status 2>/dev/null) == *'"online"'* ]]; }

start=$SECONDS
power_on
until_true 600 'the board is online' is_online
printf '%s: online %d s after power-on, %s\n' "$name" $((SECONDS - start)) "$(grep --max-count 1 -o 'Linux .*' "$work/console")"
export SEDGE_BROKER=mqtt://127.0.0.1:$port SEDGE_KEY=$work/ops.pem
# Emulation is slow, especially for code that runs for the first time.
mkdir "$work/function"
cp examples/threshold-alert/*.wasm "$work/function/"
{ cat examples/threshold-alert/function.toml; printf '[limits]\ntimeout_ms = 1000\n[trial]\nsecs = 5\n'; } \
    >"$work/function/function.toml"
"$sedge" push "$work/function" --node board --code "$code" >&2 || fail 'the push failed'

# Upstream records the id of each alert, its sensor and the value.
mosquitto_sub -p "$port" -V 5 -q 1 -c -i upstream -t 'upstream/#' -F '%P\t%p' >"$work/upstream" &
upstream=$!
# Every message makes an alert: values alternate between above and below the threshold.
for sensor in $(seq $sensors); do
    for number in $(seq $((messages / sensors))); do
        [ $((number % 50)) != 0 ] || sleep 0.4
        printf '%d\n' $((number % 2 ? 100 + number : -number))
    done | mosquitto_pub -p "$port" -V 5 -q 1 -i "sensor-$sensor" -l -t "sensors/$sensor/temperature" &
done
wrong() {
    local sensor
    for sensor in $(seq $sensors); do
        # Order of first arrival: upstream may receive a record again, under its id.
        awk -F '\t' -v key="\"key\":\"sensors/$sensor/temperature/temperature\"" '
            index($2, key) && !seen[$1]++ { match($2, /"value":-?[0-9.]+/); print substr($2, RSTART + 8, RLENGTH - 8) }' "$work/upstream" |
            diff --suppress-common-lines <(seq $((messages / sensors)) | awk '{ printf "%d.0\n", $1 % 2 ? 100 + $1 : -$1 }') - || true
    done
}
came() { awk -F '\t' '!seen[$1]++' "$work/upstream" | wc -l; }
has_more_than() { [ "$(came)" -gt "$1" ]; }
has_all() { [ "$(came)" -ge "$messages" ]; }
for cut in $(seq "$cuts"); do
    until_true 600 "alerts before cut $cut" has_more_than $((messages * cut / (cuts + 2)))
    cut_power
    printf '%s: power cut with %d of %d alerts upstream\n' "$name" "$(came)" "$messages"
    power_on
done
until_true 900 "all $messages alerts" has_all
sleep 5
difference=$(wrong)
[ -z "$difference" ] ||
    fail "alerts are missing, duplicated or out of order (< expected, > received), the first: $(head -n 10 <<<"$difference")"
printf '%s: %d messages, %d alerts, each once and in order, %d repeated under the same id\n' \
    "$name" "$messages" "$(came)" $(($(wc -l <"$work/upstream") - $(came)))

# State of sandbox and compiled code on the board's kernel, after the last power cut.
until_true 300 'the state of the processes' grep --quiet 'board: inspected' "$work/console"
grep --text 'board: ' "$work/console"
grep --quiet 'Name: sedge-worker NoNewPrivs: 1 Seccomp: 2' "$work/console" || fail 'the workers are not sandboxed'
for group in 'daemon weight 200' 'worker-[0-9]* weight 100'; do
    grep --quiet "board: cgroup $group" "$work/console" || fail 'the workers have no part of the processor of their own'
done
! grep --quiet 'Mapped: [^0]' "$work/console" || fail 'memory is writable and executable'
! grep --text --quiet 'board: log:.*\(WARN\|ERROR\)' "$work/console" || fail 'the log has warnings or errors'
[ "${SEDGE_ATTACKS:-}" = 0 ] || attack_board
printf '%s: booted, sandboxed, power cut %d times, complete after %d s\n' "${package##*/}" "$cuts" $((SECONDS - start))
