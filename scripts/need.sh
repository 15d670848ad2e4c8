#!/usr/bin/env bash
# Checks that the named tools are installed: need.sh cargo cc wasm mosquitto deny systemd deb qemu board tree
# Installs them if permitted; otherwise prints what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

deny_version=0.20.2
deb_version=3.8.0
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

# Runs apt as root or through passwordless sudo. Fails if neither is possible.
apt_install() {
    command -v apt-get >/dev/null || return 1
    local as=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as=(sudo -n)
    fi
    printf 'sedge: installing %s\n' "$*" >&2
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" >&2 && return
    "${as[@]}" apt-get update >&2
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" >&2
}

need_cargo() {
    command -v cargo >/dev/null || fail 'install Rust 1.95 or later: https://rustup.rs'
    local have
    have=$(rustc --version | sed -E 's/^rustc ([0-9]+\.[0-9]+).*/\1/')
    printf '1.95\n%s\n' "$have" | sort --version-sort --check=quiet ||
        fail "Rust $have is too old: 1.95 or later is needed (rustup update stable)"
}

need_cc() {
    command -v cc >/dev/null || apt_install gcc libc6-dev ||
        fail 'install a C compiler (Debian: apt install gcc libc6-dev): SQLite is compiled from source'
}

need_mosquitto() {
    [ -n "${SEDGE_MOSQUITTO:-}" ] || [ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null && return
    apt_install mosquitto ||
        fail 'install Mosquitto 2 (Debian: apt install mosquitto), or name its program in SEDGE_MOSQUITTO'
}

# The only output on stdout: shell commands that tell `sedge build` which compiler to use.
#   eval "$(scripts/need.sh wasm)"
need_wasm() {
    cross/wasm-target.sh || fail 'add the target for functions: rustup target add wasm32-unknown-unknown'
}

need_systemd() {
    command -v systemd-analyze >/dev/null || apt_install systemd ||
        fail 'install systemd-analyze (Debian: apt install systemd): the unit file is checked with it'
}

need_deny() {
    [ "$("$tools/bin/cargo-deny" --version 2>/dev/null)" = "cargo-deny $deny_version" ] && return
    printf 'sedge: installing cargo-deny %s into %s, once, in a few minutes\n' "$deny_version" "$tools" >&2
    # Without optimisation, which takes two thirds of the time to install it and saves a second of each check.
    cargo install cargo-deny --version "$deny_version" --locked --debug --root "$tools" \
        --target-dir "$tools/target" --quiet >&2
    rm -rf "$tools/target"
}

need_deb() {
    command -v dpkg-shlibdeps >/dev/null || apt_install dpkg-dev ||
        fail 'install dpkg-shlibdeps (Debian: apt install dpkg-dev): it finds out which libraries a package needs'
    [ "$("$tools/bin/cargo-deb" --version 2>/dev/null)" = "$deb_version" ] && return
    printf 'sedge: installing cargo-deb %s into %s, once, in a minute or two\n' "$deb_version" "$tools" >&2
    cargo install cargo-deb --version "$deb_version" --locked --no-default-features --debug --root "$tools" \
        --target-dir "$tools/target" --quiet >&2
    rm -rf "$tools/target"
}

# Registers qemu-user, so that programs for boards and their children run on this machine.
need_qemu() {
    local formats=/proc/sys/fs/binfmt_misc
    emulated() { grep -qs '^enabled' "$formats/qemu-aarch64" && grep -qs '^enabled' "$formats/qemu-arm"; }
    # systemd mounts binfmt_misc; in containers root does it.
    enable() {
        [ "$(id -u)" = 0 ] || return 0
        [ -e "$formats/register" ] || mount -t binfmt_misc binfmt_misc "$formats" 2>/dev/null || true
        local format
        for format in qemu-aarch64 qemu-arm; do update-binfmts --enable "$format" 2>/dev/null || true; done
    }
    ! emulated || return 0
    enable
    ! emulated || return 0
    apt_install qemu-user-static binfmt-support || true
    enable
    emulated || fail 'install an emulator for ARM programs, as root (Debian: apt install qemu-user-static binfmt-support)'
}

# The emulator of whole boards, and Mosquitto's clients as sensors.
need_board() {
    command -v mosquitto_sub >/dev/null || apt_install mosquitto-clients ||
        fail "install Mosquitto's clients (Debian: apt install mosquitto-clients)"
    command -v qemu-system-aarch64 >/dev/null && command -v qemu-system-arm >/dev/null || apt_install qemu-system-arm ||
        fail 'install the emulator of whole boards (Debian: apt install qemu-system-arm)'
}

# Makes a Debian tree of an architecture once, to install packages in: tree-arm64.
make_tree() {
    local tree=$1 architecture=$2
    [ ! -x "$tree/usr/bin/dpkg" ] || return 0
    command -v debootstrap >/dev/null || apt_install debootstrap || fail 'install debootstrap (Debian: apt install debootstrap)'
    printf 'sedge: making a Debian tree for %s in %s, once, in a few minutes\n' "$architecture" "$tree" >&2
    rm -rf "$tree.new"
    debootstrap --arch="$architecture" --variant=minbase --include=systemd,init-system-helpers bookworm "$tree.new" >&2 ||
        fail 'debootstrap failed: see the messages above'
    mv "$tree.new" "$tree"
}
need_tree() { make_tree "$tools/bookworm" "$(dpkg --print-architecture)"; }
need_tree-arm64() { make_tree "$tools/bookworm-arm64" arm64; }
need_tree-armhf() { make_tree "$tools/bookworm-armhf" armhf; }

for tool in "$@"; do
    "need_$tool"
done
