#!/usr/bin/env bash
# Builds the JavaScript engine, host/sandbox/src/script/engine.wasm, and its digest beside it.
#
#     cross/js-engine.sh           # builds, and replaces the file
#     cross/js-engine.sh --check   # builds, and compares. Without the tools, it says so and checks the digest only
#
# The engine is QuickJS-ng, from the crate rquickjs-sys, with the code of cross/js-engine. The file is committed, so that
# nobody else needs these tools (Debian 12):
#
#     apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32 binaryen
#
# Equal tools give equal bytes. binaryen is checked, because each version gives others.
set -euo pipefail
cd "$(dirname "$0")/.."

crate=rquickjs-sys version=0.14.0
binaryen='wasm-opt version 108'
sources=$PWD/cross/js-engine target=$PWD/host/sandbox/src/script/engine.wasm

say() { echo "js-engine: $*" >&2; }

missing() {
    local tool
    for tool in clang-19 wasm-ld-19 wasm-opt patch cargo; do
        command -v "$tool" >/dev/null || { echo "$tool"; return; }
    done
    [ "$(wasm-opt --version)" = "$binaryen" ] || { echo "$binaryen"; return; }
    [ -e /usr/lib/wasm32-wasi/libc.a ] || { echo wasi-libc; return; }
    [ -e /usr/lib/llvm-19/lib/clang/19/lib/wasi/libclang_rt.builtins-wasm32.a ] || echo libclang-rt-19-dev-wasm32
}

check=
[ "${1:-}" != --check ] || check=yes
obstacle=$(missing)
if [ -n "$obstacle" ]; then
    [ -n "$check" ] || { say "$obstacle is missing: apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32 binaryen"; exit 1; }
    (cd "${target%/*}" && sha256sum --check --quiet engine.wasm.sha256)
    echo "skipped: the JavaScript engine was NOT built again, because $obstacle is missing"
    exit
fi

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
# The crate is only a source of C files, and no part of the program.
mkdir "$build/fetch" "$build/fetch/src"
printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[dependencies]\n%s = "=%s"\n' \
    "$crate" "$version" >"$build/fetch/Cargo.toml"
: >"$build/fetch/src/lib.rs"
manifest=$(cargo metadata --quiet --format-version 1 --manifest-path "$build/fetch/Cargo.toml" |
    grep -o '"manifest_path":"[^"]*/'"$crate-$version"'/Cargo.toml"' | head -1 | cut -d '"' -f 4)
cp -r "${manifest%/*}/quickjs" "$build/quickjs"
patch --quiet --directory="$build/quickjs" --strip=1 <"$sources/quickjs.patch"

# -std=gnu23 for #embed. The linker is called directly: the compiler would run any wasm-opt in the path by itself.
flags=(--target=wasm32-wasi --sysroot=/usr -std=gnu23 -Os -DNDEBUG -D_GNU_SOURCE
    -fno-strict-aliasing -fwrapv -funsigned-char -ffunction-sections -fdata-sections
    -msign-ext -mnontrapping-fptoint -mbulk-memory -I. "-I$sources" "--embed-dir=$sources")
objects=()
compile() {
    local file=$1 object
    shift
    object=$build/$(basename "$file" .c).o
    (cd "$build/quickjs" && clang-19 "${flags[@]}" "$@" -c "$file" -o "$object")
    objects+=("$object")
}
for file in quickjs libregexp libunicode dtoa; do compile "$file.c" -w; done
for file in engine failures api modules outputs memory; do compile "$sources/$file.c" -Wall -Wextra -Wno-unused-parameter -Werror; done
wasm-ld-19 "${objects[@]}" -L/usr/lib/wasm32-wasi -lc -lm \
    /usr/lib/llvm-19/lib/clang/19/lib/wasi/libclang_rt.builtins-wasm32.a -o "$build/linked.wasm" \
    --no-entry --gc-sections --strip-all --stack-first -z stack-size=98304 --initial-memory=458752 --export-memory
wasm-opt -Os --enable-bulk-memory --enable-sign-ext --enable-nontrapping-float-to-int "$build/linked.wasm" -o "$build/engine.wasm"

if [ -z "$check" ]; then
    cp "$build/engine.wasm" "$target"
    (cd "${target%/*}" && sha256sum engine.wasm >engine.wasm.sha256 && cat engine.wasm.sha256)
    say "$(stat -c %s "$target") bytes"
elif ! cmp "$build/engine.wasm" "$target"; then
    say "the engine built from cross/js-engine is not the committed one: run cross/js-engine.sh and commit both files"
    exit 1
else
    (cd "${target%/*}" && sha256sum --check --quiet engine.wasm.sha256)
    echo "the JavaScript engine is the committed one"
fi
