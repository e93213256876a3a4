"""Writes the seed corpus of fuse_fuzz: one good request of each kind, some in pieces, some with extensions.

    python tests/fuzz/fuse_seeds.py [FOLDER]

The layout of an input is at the head of ``fuse_fuzz.c``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from pathlib import Path

LONG_XATTR, CONTEXT, CHANGES, FAILS = 1, 2, 4, 8

#: opcode -> bytes of its fixed arguments
PLAIN = {
    "getattr": (3, 16), "setattr": (4, 88), "readlink": (5, 0), "open": (14, 8), "statfs": (17, 0),
    "release": (18, 24), "fsync": (20, 16), "flush": (25, 24), "opendir": (27, 8), "releasedir": (29, 24),
    "fsyncdir": (30, 16), "getlk": (31, 48), "setlk": (32, 48), "setlkw": (33, 48), "access": (34, 8),
    "bmap": (37, 16), "destroy": (38, 0), "poll": (40, 24), "fallocate": (43, 32), "lseek": (46, 24),
    "copy_file_range": (47, 56), "setupmapping": (48, 40), "syncfs": (50, 8), "statx": (52, 24),
    "copy_file_range_64": (53, 56), "forget": (2, 8), "interrupt": (36, 8),
}  # fmt: skip
NAMED = {
    "lookup": (1, 0, 1), "symlink": (6, 0, 2), "mknod": (8, 16, 1), "mkdir": (9, 8, 1), "unlink": (10, 0, 1),
    "rmdir": (11, 0, 1), "rename": (12, 8, 2), "link": (13, 8, 1), "removexattr": (24, 0, 1), "create": (35, 16, 1),
    "rename2": (45, 16, 2), "tmpfile": (51, 16, 1),
}  # fmt: skip


def case(
    opcode: int, body: bytes, *, flags: int = 0, ext: bytes = b"", out: Sequence[int] = (), into: Sequence[int] = (),
    reply: int = 0, room: int = 512,
) -> bytes:  # fmt: skip
    """One input: the request, cut into pieces of `out` bytes and the rest, and room of `into` bytes and `room`."""
    header = struct.pack("<IIQQIIIHH", 40 + len(body) + len(ext), opcode, 7, 1, 0, 0, 1, len(ext) // 8, 0)
    head = struct.pack("<BBBBHH", flags, len(out), len(into), 0, reply, room)
    return head + struct.pack(f"<{len(out) + len(into)}H", *out, *into) + header + body + ext


def io(size: int) -> bytes:
    """struct fuse_read_in, fuse_write_in."""
    return struct.pack("<QQIIQII", 1, 4096, size, 0, 0, 0, 0)


def seeds() -> dict[str, bytes]:
    """Name -> input."""
    made = {name: case(opcode, bytes(length), reply=8) for name, (opcode, length) in PLAIN.items()}
    for name, (opcode, length, names) in NAMED.items():
        made[name] = case(opcode, bytes(length) + b"name\0" * names, reply=128)
    context = struct.pack("<IIII", 40, 1, 4, 0) + b"security.selinux\0" + b"abcd" + bytes(3)
    groups = struct.pack("<IIIII", 24, 32, 2, 5, 6) + bytes(4)
    mkdir = bytes(8) + b"name\0"
    made |= {
        "mkdir_extensions": case(9, mkdir, ext=context + groups, reply=128),
        "mkdir_old_context": case(9, mkdir + context, flags=CONTEXT, reply=128),
        "create_groups": case(35, bytes(16) + b"name\0", ext=groups, out=(40, 3), reply=144),
        "init": case(26, struct.pack("<IIIIQ", 7, 45, 1 << 20, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(40)),
        "init_short": case(26, struct.pack("<IIII", 7, 31, 1 << 20, 1), room=40),
        "init_newer": case(26, struct.pack("<II", 8, 0)),
        "read": case(15, io(400), into=(16, 100, 1), reply=400),
        "read_one_piece": case(15, io(100), reply=100),
        "readdir": case(28, io(300), into=(20,), reply=200),
        "readdirplus": case(44, io(300), into=(3, 13), reply=300),
        "write": case(16, io(200) + bytes(200), out=(40, 40), reply=8),
        "write_pieces": case(16, io(200) + bytes(range(200)), out=(39, 40, 50, 1), reply=8, flags=CHANGES),
        "setxattr": case(21, struct.pack("<II", 5, 0) + b"user.a\0" + b"value"),
        "setxattr_long": case(21, struct.pack("<IIII", 5, 0, 1, 0) + b"user.a\0" + b"value", flags=LONG_XATTR),
        "getxattr": case(22, struct.pack("<II", 100, 0) + b"user.a\0", reply=50),
        "getxattr_size": case(22, struct.pack("<II", 0, 0) + b"user.a\0", reply=8),
        "listxattr": case(23, struct.pack("<II", 100, 0), reply=50, flags=FAILS),
        "ioctl": case(39, struct.pack("<QIIQII", 1, 0, 0, 0, 20, 30) + bytes(20), reply=46),
        "batch_forget": case(42, struct.pack("<II", 2, 0) + bytes(32), out=(48, 16)),
        "removemapping": case(49, struct.pack("<I", 2) + bytes(32)),
        "notify_reply": case(41, bytes(40) + bytes(100)),
    }
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus" / "fuse"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
