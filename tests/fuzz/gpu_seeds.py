"""Writes the seed corpus of gpu_fuzz: what drivers do, command by command, and all of it with an edge of each.

    python tests/fuzz/gpu_seeds.py [FOLDER]

The layout of an input is at the head of ``gpu_fuzz.c``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

CURSOR, LOOK, FENCED, NO_PAGES = 1, 2, 4, 8
ALL = 0xE  #: features: EDID, UUID, blobs
PAGES = 0x100000
SIDE = 64
BYTES = SIDE * SIDE * 4
FORMATS = (1, 2, 3, 4, 67, 68, 121, 134)

INFO, CREATE, UNREF, SCANOUT, FLUSH, TRANSFER, ATTACH, DETACH = range(0x100, 0x108)
EDID, UUID, BLOB, SCANOUT_BLOB = range(0x10A, 0x10E)
UPDATE, MOVE = 0x300, 0x301


def step(kind: int, body: bytes = b"", *, how: int = LOOK, cut: int = 0) -> bytes:
    """One command."""
    return struct.pack("<BBHH", how, cut, kind, len(body)) + body


def rect(x: int = 0, y: int = 0, width: int = SIDE, height: int = SIDE) -> bytes:
    """Pixels."""
    return struct.pack("<4I", x, y, width, height)


def create(number: int = 1, kind: int = 2, width: int = SIDE, height: int = SIDE) -> bytes:
    """A resource."""
    return step(CREATE, struct.pack("<4I", number, kind, width, height))


def attach(number: int = 1, *pieces: tuple[int, int], cut: int = 0) -> bytes:
    """Its memory."""
    pieces = pieces or ((PAGES, BYTES),)
    entries = b"".join(struct.pack("<QII", at, length, 0) for at, length in pieces)
    return step(ATTACH, struct.pack("<II", number, len(pieces)) + entries, cut=cut)


def transfer(area: bytes = rect(), offset: int = 0, number: int = 1) -> bytes:
    """Pixels from there."""
    return step(TRANSFER, area + struct.pack("<QII", offset, number, 0))


def flush(area: bytes = rect(), number: int = 1) -> bytes:
    """They have changed."""
    return step(FLUSH, area + struct.pack("<II", number, 0))


def show(area: bytes = rect(), scanout: int = 0, number: int = 1) -> bytes:
    """A resource is shown."""
    return step(SCANOUT, area + struct.pack("<II", scanout, number))


def blob(number: int = 1, *, memory: int = 1, flags: int = 3, size: int = BYTES, at: int = PAGES) -> bytes:
    """One in the guest's memory."""
    return step(BLOB, struct.pack("<4IQQQII", number, memory, flags, 1, 0, size, at, size & 0xFFFFFFFF, 0))


def show_blob(number: int = 1, *, kind: int = 2, stride: int = SIDE * 4, offset: int = 0) -> bytes:
    """It is shown."""
    body = rect() + struct.pack("<6I8I", 0, number, SIDE, SIDE, kind, 0, stride, 0, 0, 0, offset, 0, 0, 0)
    return step(SCANOUT_BLOB, body)


def cursor(kind: int, x: int, y: int, number: int, *, length: int = 32) -> bytes:
    """A command of the cursor's queue."""
    return step(kind, struct.pack("<8I", 0, x, y, 0, number, 3, 4, 0)[:length], how=CURSOR | LOOK)


def seeds() -> dict[str, bytes]:
    """Name -> input."""
    shown = create() + attach() + show()
    drawn = shown + transfer() + flush()
    half = ((PAGES, BYTES // 2), (PAGES + BYTES, BYTES // 2))
    ids = struct.pack("<II", 1, 0)
    made = {
        "info": step(INFO),
        "edid": step(EDID, bytes(8)),
        "edid_of_none": step(INFO) + step(EDID, ids * 2),
        "fenced": step(INFO, how=FENCED),
        "create": create(),
        "unref": create() + step(UNREF, ids),
        "twice": create() + create(),
        "attach": create() + attach(),
        "shown": shown,
        "drawn": drawn,
        "detach": create() + attach() + step(DETACH, ids),
        "scattered": create() + attach(1, *half) + transfer(),
        "bytes": create() + attach(1, *[(PAGES + n, 1) for n in range(200)]) + transfer(rect(0, 0, 50, 1)),
        "neighbours": create() + attach(1, *[(PAGES + n * 512, 512) for n in range(32)]) + transfer(),
        "in_pieces": create() + attach(1, *half, cut=37) + transfer(),
        "part": drawn + transfer(rect(3, 5, 7, 11), (5 * SIDE + 3) * 4) + flush(rect(3, 5, 7, 11)),
        "corner": drawn + transfer(rect(63, 63, 1, 1), BYTES - 4) + flush(rect(63, 63, 1, 1)),
        "outside": drawn + transfer(rect(1, 0, SIDE, SIDE)) + flush(rect(0, 1, SIDE, SIDE)),
        "beyond": drawn + transfer(rect(), 4),
        "wraps": drawn + transfer(rect(0xFFFFFFFF, 0, 2, 1)),
        "far": drawn + transfer(rect(), (1 << 64) - 4),
        "part_shown": create() + attach() + show(rect(8, 8, 32, 32)) + flush(),
        "two_scanouts": shown + show(rect(0, 0, 32, 32), 1) + flush(),
        "dark": drawn + show(rect(), 0, 0),
        "no_scanout": create() + show(rect(), 2),
        "small": create() + show(rect(0, 0, 15, 16)),
        "unref_shown": drawn + step(UNREF, ids) + flush(),
        "another": drawn + create(2) + show(rect(), 0, 2),
        "detached_shown": drawn + step(DETACH, ids) + transfer() + flush(),
        "pages_go": drawn + step(INFO, how=NO_PAGES) + transfer() + flush(),
        "nowhere": create() + attach(1, (1 << 63, BYTES)) + transfer(),
        "wrapping_pages": create() + attach(1, ((1 << 64) - 8, BYTES)),
        "empty_page": create() + attach(1, (PAGES, 0)),
        "many": b"".join(create(n, 1, 16, 16) for n in range(1, 20)),
        "large": create(1, 1, 512, 511) + create(2, 1, 512, 512),
        "huge": step(INFO) + create(1, 1, 16384, 16384) + create(2, 1, 0xFFFFFFFF, 0xFFFFFFFF),
        "uuid": create() + step(UUID, ids) + step(UUID, ids),
        "blob": blob() + show_blob() + flush(),
        "blob_pages_go": blob() + show_blob() + step(INFO, how=NO_PAGES | LOOK) + flush(),
        "blob_offset": blob() + show_blob(offset=4) + show_blob(stride=260),
        "blob_stride": blob() + show_blob(stride=1 << 31),
        "blob_large": step(INFO) + blob(size=1 << 40) + blob(2, size=(1 << 64) - 1),
        "blob_host": step(INFO) + blob(memory=2) + blob(flags=99),
        "blob_cursor": blob(2) + cursor(UPDATE, 5, 6, 2),
        "blob_transfer": blob() + transfer() + show(),
        "cursor": drawn + cursor(UPDATE, 10, 20, 1) + cursor(MOVE, 30, 40, 0),
        "cursor_off": drawn + cursor(UPDATE, 1, 1, 0),
        "cursor_far": drawn + cursor(UPDATE, 0xFFFFFFF0, 0x7FFFFFFF, 1),
        "cursor_short": drawn + cursor(UPDATE, 1, 1, 1, length=20),
        "cursor_small": create(2, 2, 16, 16) + cursor(UPDATE, 1, 1, 2),
    }
    made |= {f"format_{kind}": create(1, kind) + attach() + show() + transfer() + flush() for kind in FORMATS}
    short = b"".join(step(kind, bytes(4)) for kind in (*range(0x101, 0x110), 0x200, 0x207, 0x300))
    made["short"] = step(INFO) + short
    return {name: bytes([ALL]) + data for name, data in made.items()} | {"no_features": bytes(1) + drawn + blob(7)}


def main() -> None:
    """Write them all."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus/gpu"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
