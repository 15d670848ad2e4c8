#!/usr/bin/env python3
"""Removes the unwind tables from a program: trim.py PROGRAM

rustc writes unwind tables for every function with destructors even if panics abort; they are a tenth of the program. Linkers put them
at the end of the first loaded segment, after the data read at run time. The segment is shortened and the rest of the file moved up by
whole pages; no address changes. A program with another layout (32-bit ARM has other tables) is left unchanged.
"""

import os
import struct
import sys

TABLES = {b".eh_frame_hdr", b".eh_frame"}
PT_NULL, PT_LOAD, PT_GNU_EH_FRAME, SHT_NULL, SHT_NOBITS = 0, 1, 0x6474E550, 0, 8


def trimmed(elf):
    """Returns the program without its tables, or None if the layout is not as expected."""
    if elf[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return None
    out = bytearray(elf)
    phoff, shoff = struct.unpack_from("<QQ", elf, 32)
    phsize, phnum, shsize, shnum, names = struct.unpack_from("<5H", elf, 54)
    segments = [phoff + phsize * index for index in range(phnum)]
    sections = [shoff + shsize * index for index in range(shnum)]
    (strings,) = struct.unpack_from("<Q", elf, sections[names] + 24)

    def name(section):
        start = strings + struct.unpack_from("<I", elf, section)[0]
        return elf[start : elf.index(b"\0", start)]

    tables = [section for section in sections if name(section) in TABLES]
    if not tables:
        return None
    spans = [struct.unpack_from("<QQ", elf, section + 24) for section in tables]
    start, end = min(at for at, _ in spans), max(at + size for at, size in spans)
    # No other section may lie between them, and they must be the end of a segment.
    if any(start < struct.unpack_from("<Q", elf, other + 24)[0] < end for other in sections if other not in tables):
        return None
    last = None
    for segment in segments:
        kind, _, offset, _, _, size, _, align = struct.unpack_from("<IIQQQQQQ", elf, segment)
        if kind == PT_LOAD and offset <= start and offset + size == end:
            last = segment, offset, align
        elif kind == PT_LOAD and offset < end and offset + size > start:
            return None
    if last is None:
        return None
    segment, offset, align = last
    after = [
        struct.unpack_from("<Q", elf, other + 8)[0]
        for other in segments
        if struct.unpack_from("<I", elf, other)[0] == PT_LOAD and struct.unpack_from("<Q", elf, other + 8)[0] >= end
    ]
    gap = (min(after) - start) // align * align
    struct.pack_into("<QQ", out, segment + 32, start - offset, start - offset)

    def move(at):
        (old,) = struct.unpack_from("<Q", elf, at)
        if old >= end:
            struct.pack_into("<Q", out, at, old - gap)

    for other in segments:
        # Removes the program header: the unwinder of a backtrace would misread an empty table.
        if struct.unpack_from("<I", elf, other)[0] == PT_GNU_EH_FRAME:
            struct.pack_into("<I", out, other, PT_NULL)
        move(other + 8)
    for section in sections:
        if section in tables:
            out[section + 4 : section + 8] = struct.pack("<I", SHT_NULL)
        move(section + 24)
    move(40)
    # Moves the rest of the file to its new offset, less than a page after the start of the tables.
    return bytes(out[:start]) + bytes(min(after) - gap - start) + bytes(out[min(after) :])


def main():
    (program,) = sys.argv[1:]
    with open(program, "rb") as file:
        elf = file.read()
    smaller = trimmed(elf)
    if smaller is None:
        return
    # Not in place: cargo has a hard link to the file.
    with open(program + ".new", "wb") as file:
        file.write(smaller)
    os.chmod(program + ".new", os.stat(program).st_mode & 0o777)
    os.replace(program + ".new", program)
    print(f"trim: {len(elf)} bytes, {len(smaller)} without unwind tables", file=sys.stderr)


if __name__ == "__main__":
    main()
