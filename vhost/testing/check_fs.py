"""Clauses about virtio-fs: queues, INIT, requests in any shape, names that lead nowhere. [VIRTIO 1.3, 5.11; fuse.h]"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.constants import VirtioFeature
from vhost.frontend.rings import Buffer, Used
from vhost.testing.check_blk import request
from vhost.testing.check_messages import get_config
from vhost.testing.peer import Failure, NotOffered, Peer, Ring
from vhost.testing.report import Probe, Suite, Trial

FS = Suite()

LOOKUP, FORGET, GETATTR, MKDIR, RMDIR, RENAME, READ, STATFS, INIT = 1, 2, 3, 9, 11, 12, 15, 17, 26
OPENDIR, READDIR, RELEASEDIR, DESTROY, BATCH_FORGET = 27, 28, 29, 38, 42
_UNKNOWN = 4000
_ROOT = 1
#: flags of INIT that Linux 6.1 offers, those that change what is asked for left out
_FLAGS = 1 | 1 << 5 | 1 << 15 | 1 << 18 | 1 << 22

_INDIRECT = int(VirtioFeature.INDIRECT_DESC)
_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")


def _probe(peer: Peer) -> tuple[list[Buffer], list[Buffer]]:
    # no server knows it, and all rings may have it
    return [peer.put(_IN.pack(_IN.size, _UNKNOWN, 2, 0, 0, 0, 0, 0))], [peer.room(_OUT.size)]


def _judge(peer: Peer, in_: list[Buffer], used: Used) -> None:
    length, error, unique = _OUT.unpack(peer.memory.read(*in_[0]))
    if used.length != _OUT.size or length != _OUT.size:
        raise Failure(f"an opcode that there is not was answered with {used.length} bytes that say {length}")
    if not error or unique != 2:
        raise Failure(f"an opcode that there is not was answered by error {-error} to request {unique} instead of 2")


PROBE = Probe(_probe, _judge)


class Mount:
    """Rings of a file system, INIT done."""

    def __init__(self, trial: Trial, features: int = 0, *, init: bool = True, queues: int = 2) -> None:
        self.peer = trial.peer()
        self.hiprio, self.ring, *self.others = self.peer.bring_up(features, queues=queues, size=128)
        self._unique = 0
        if init:
            self.init()

    def body(self, opcode: int, node: int, args: bytes = b"", *, length: int | None = None) -> bytes:
        """A whole request; `length`: what its header says instead."""
        self._unique += 2
        said = _IN.size + len(args) if length is None else length
        return _IN.pack(said, opcode, self._unique, node, os.getuid(), os.getgid(), 1, 0) + args

    def raw(
        self, out: Sequence[bytes], room: Sequence[int], *, indirect: bool = False, ring: Ring | None = None
    ) -> tuple[int, bytes]:
        """A request in such pieces: errno and what follows the reply's header."""
        used, back = request(ring or self.ring, out, room, indirect=indirect)
        reply = b"".join(back)
        if used.length < _OUT.size:
            raise Failure(f"{used.length} bytes are said to be written, less than the header of a reply")
        length, error, unique = _OUT.unpack_from(reply)
        if length != used.length:
            raise Failure(f"a reply says that it has {length} bytes, the ring says {used.length}")
        if unique != self._unique:
            raise Failure(f"request {self._unique} was answered as {unique}")
        if not -512 < error <= 0:
            raise Failure(f"error {error} is none that a driver takes")
        if error and length != _OUT.size:
            raise Failure(f"error {-error} comes with {length - _OUT.size} bytes of data")
        return -error, reply[_OUT.size : length]

    def _room(self, room: int) -> list[int]:
        return [_OUT.size, room] if room else [_OUT.size]

    def ask(self, opcode: int, node: int = _ROOT, args: bytes = b"", *, room: int = 4096) -> tuple[int, bytes]:
        """A request as Linux sends it: header and arguments in pieces of their own."""
        whole = self.body(opcode, node, args)
        return self.raw([whole[: _IN.size], *([args] if args else [])], self._room(room))

    def ok(self, opcode: int, node: int = _ROOT, args: bytes = b"", *, room: int = 4096, least: int = 0) -> bytes:
        """As `ask`. Raises: Failure: an error, or fewer bytes than `least`."""
        error, data = self.ask(opcode, node, args, room=room)
        if error:
            raise Failure(f"opcode {opcode} failed: {os.strerror(error)}")
        if len(data) < least:
            raise Failure(f"opcode {opcode} was answered with {len(data)} bytes, {least} are needed")
        return data

    def init(self, major: int = 7, minor: int = 31, flags: int = _FLAGS) -> tuple[int, ...]:
        """INIT: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write."""
        args = struct.pack("<IIII", major, minor, 1 << 17, flags)
        return struct.unpack_from("<IIIIHHI", self.ok(INIT, 0, args, room=64, least=24))

    def root(self) -> bytes:
        """The root's attributes. Raises: Failure."""
        data = self.ok(GETATTR, _ROOT, bytes(16), room=104, least=104)
        (mode,) = struct.unpack_from("<I", data, 16 + 60)
        if mode & 0o170000 != 0o040000:
            raise Failure(f"the root has mode {mode:o}: no folder")
        return data


@FS("VIRTIO 5.11.2", "there is a queue of high priority, and one for requests")
def _numbers(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.MQ)
    count = peer.ask_u64(F.GET_QUEUE_NUM)
    if count < 2:
        raise Failure(f"GET_QUEUE_NUM is answered by {count}")


@FS("VIRTIO 5.11.4", "the configuration space has a tag and a number of request queues")
def _config(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    raw = get_config(peer, 0, 40)
    tag, queues = raw[:36].rstrip(b"\0"), int.from_bytes(raw[36:40], "little")
    if b"\0" in tag or not tag:
        raise Failure(f"the tag is {raw[:36]!r}: not a name padded with zeros")
    if queues < 1:
        raise Failure("there are 0 request queues")
    try:
        tag.decode()
    except UnicodeDecodeError:
        raise Failure(f"the tag {tag!r} is no UTF-8") from None
    if P.MQ in peer.acked_protocol and peer.ask_u64(F.GET_QUEUE_NUM) < queues + 1:
        raise Failure(f"{queues} request queues are said to be there, GET_QUEUE_NUM tells of fewer")


@FS.layouts("FUSE_INIT", "versions and flags are agreed on")
def _init(trial: Trial, features: int) -> None:
    mount = Mount(trial, features, init=False)
    major, minor, readahead, flags, *_, max_write = mount.init()
    if major != 7 or minor < 1:
        raise Failure(f"protocol {major}.{minor} is not 7.x")
    if flags & ~_FLAGS:
        raise Failure(f"flags {flags & ~_FLAGS:#x} were agreed on that were not offered")
    if readahead > 1 << 17 or max_write < 4096:
        raise Failure(f"max_readahead is {readahead} (offered {1 << 17}), max_write {max_write}")
    mount.root()


@FS("FUSE_INIT", "a later major is told to come with ours")
def _major(trial: Trial) -> None:
    mount = Mount(trial, init=False)
    error, data = mount.ask(INIT, 0, struct.pack("<IIII", 8, 0, 1 << 17, _FLAGS), room=64)
    if not error and int.from_bytes(data[:4], "little") != 7:
        raise Failure(f"major {int.from_bytes(data[:4], 'little')} was agreed on")
    mount.init()
    mount.root()


@FS.layouts("FUSE_LOOKUP", "what is not there is ENOENT, or a reply without an inode")
def _no_entry(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    for name in (b"no such name", b"x" * 200):
        error, data = mount.ask(LOOKUP, _ROOT, name + b"\0", room=128)
        if error != errno.ENOENT and (error or data[:8] != bytes(8)):
            raise Failure(f"a name that is not there gave error {error}, inode {data[:8].hex()}")


@FS.layouts("FUSE_READDIR", "the root can be listed")
def _list(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    error, data = mount.ask(OPENDIR, _ROOT, struct.pack("<II", os.O_RDONLY | os.O_DIRECTORY, 0), room=16)
    if error not in (0, errno.ENOSYS):
        raise Failure(f"OPENDIR of the root failed: {os.strerror(error)}")
    handle = data[:8].ljust(8, b"\0")
    at = seen = 0
    for _ in range(64):
        data = mount.ok(READDIR, _ROOT, handle + struct.pack("<QIIQII", at, 4096, 0, 0, 0, 0))
        if not data:
            break
        offset = 0
        while offset < len(data):
            if len(data) - offset < 24:
                raise Failure("a listing ends within an entry")
            _, at, length, _ = struct.unpack_from("<QQII", data, offset)
            if not length or offset + 24 + length > len(data):
                raise Failure(f"a name of {length} bytes does not lie in the listing")
            offset += (24 + length + 7) // 8 * 8
            seen += 1
    if error == 0:
        mount.ok(RELEASEDIR, _ROOT, handle + bytes(16), room=0)


@FS.layouts("FUSE_STATFS", "the file system says how large it is")
def _statfs(trial: Trial, features: int) -> None:
    data = Mount(trial, features).ok(STATFS, _ROOT, room=80, least=80)
    blocks, free, _, _, _, size = struct.unpack_from("<QQQQQI", data)
    if free > blocks or not size:
        raise Failure(f"{free} of {blocks} blocks of {size} bytes are free")


@FS.layouts("VIRTIO 2.7.4", "nothing is assumed of how a request is cut into descriptors")
def _pieces(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    want = mount.root()
    for cut, room in (
        ((1,), [120]),
        ((39,), [16, 104]),
        ((40, 1), [1, 119]),
        ((20, 20, 8), [15, 2, 103]),
        ((), [60, 60]),
    ):
        whole = mount.body(GETATTR, _ROOT, bytes(16))
        out = []
        for n in cut:
            out.append(whole[:n])
            whole = whole[n:]
        error, data = mount.raw([*out, whole], room)
        if error or data[16:40] != want[16:40]:
            raise Failure(f"attributes in pieces: error {error}, or others than in one piece")


@FS.layouts("VIRTIO 2.7.5.3", "requests in indirect descriptors are answered")
def _indirect(trial: Trial, features: int) -> None:
    with Peer(trial.connect()).handshake() as peer:
        peer.need_feature(_INDIRECT)
    mount = Mount(trial, features | _INDIRECT)
    for _ in range(3):
        error, _ = mount.raw([mount.body(GETATTR, _ROOT, bytes(16))], [16, 104], indirect=True)
        if error:
            raise Failure(f"an indirect request failed: {os.strerror(error)}")


@FS.layouts("VIRTIO 5.11.6.1", "FORGET comes back without an answer")
def _forget(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    for whole in (
        mount.body(FORGET, _ROOT, struct.pack("<Q", 1)),
        mount.body(FORGET, 12345, struct.pack("<Q", 1 << 40)),
        mount.body(BATCH_FORGET, 0, struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 7, 1, 8, 1)),
    ):
        used, _ = request(mount.hiprio, [whole], [])
        if used.length:
            raise Failure(f"{used.length} bytes are said to be written to a FORGET")
    mount.root()


@FS.layouts("linux/fuse.h", "opcodes that there are not are refused, and lengths that do not fit")
def _lengths(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    for opcode in (0, 7, 19, 999, 0xFFFFFFFF):
        error, _ = mount.ask(opcode)
        if not error:
            raise Failure(f"opcode {opcode} succeeded")
    for opcode in (LOOKUP, GETATTR, READ, RENAME, MKDIR, OPENDIR, READDIR):
        for length in (0, 1, 3, 7):
            error, _ = mount.ask(opcode, _ROOT, b"\xff" * length)
            if not error:
                raise Failure(f"opcode {opcode} with {length} bytes of arguments succeeded")
    mount.root()


@FS.layouts("linux/fuse.h", "headers that say what is not so do no harm")
def _lies(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    for said in (0, 39, 57, 1 << 20, 0xFFFFFFFF):
        request(mount.ring, [mount.body(GETATTR, _ROOT, bytes(16), length=said)], [16, 104])
    for out, room in (([bytes(39)], [120]), ([mount.body(GETATTR, _ROOT, bytes(16))], [8]), ([b"x"], [])):
        request(mount.ring, out, room)
    mount.root()


@FS.layouts("VIRTIO 5.11.6.2", "names are names, not paths: none leads out of the folder")
def _names(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    for name in (b"../x", b"a/../../x", b"/", b"/etc", b"./.", b""):
        error, data = mount.ask(LOOKUP, _ROOT, name + b"\0", room=128)
        if not error and data[:8] != bytes(8):
            raise Failure(f"the name {name!r} was found")
        error, _ = mount.ask(MKDIR, _ROOT, struct.pack("<II", 0o755, 0) + name + b"\0", room=128)
        if not error:
            raise Failure(f"a folder {name!r} was made")
    for name in (b"no end", b""):
        error, _ = mount.ask(LOOKUP, _ROOT, name, room=128)
        if not error:
            raise Failure(f"the name {name!r}, which does not end, was found")
    for node in (2**63, 0xDEADBEEF, 0):
        error, _ = mount.ask(GETATTR, node, bytes(16), room=104)
        if not error:
            raise Failure(f"inode {node} has attributes, though nobody named it")
    mount.root()


@FS("FUSE_DESTROY", "it ends the mount; INIT begins another")
def _destroy(trial: Trial) -> None:
    mount = Mount(trial)
    request(mount.ring, [mount.body(DESTROY, 0)], [_OUT.size])  # answered or not, it comes back
    mount.init()
    mount.root()
    mount.init()  # a guest that was reset says no goodbye
    mount.root()


@FS.layouts("rst VHOST_USER_GET_VRING_BASE", "a ring that was stopped goes on where it was")
def _restart(trial: Trial, features: int) -> None:
    mount = Mount(trial, features)
    for _ in range(3):
        mount.root()
        base = mount.peer.stop(mount.ring)
        mount.peer.start(mount.ring, base=base)
    mount.root()


@FS("VIRTIO 5.11.2", "every request queue answers")
def _all_queues(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.MQ)
    count = min(peer.ask_u64(F.GET_QUEUE_NUM), 9)
    if count < 3:
        raise NotOffered("more than one request queue")
    peer.close()
    mount = Mount(trial, queues=count)
    for ring in mount.others:
        error, _ = mount.raw([mount.body(GETATTR, _ROOT, bytes(16))], [16, 104], ring=ring)
        if error:
            raise Failure(f"a request on queue {ring.index} failed: {os.strerror(error)}")


@FS("FUSE_MKDIR", "what is made is found, and gone when it is removed", writes=True)
def _make(trial: Trial) -> None:
    mount = Mount(trial)
    name = b"vhost-check-folder\0"
    mount.ask(RMDIR, _ROOT, name, room=0)
    made = mount.ok(MKDIR, _ROOT, struct.pack("<II", 0o755, 0) + name, room=128, least=128)
    found = mount.ok(LOOKUP, _ROOT, name, room=128, least=128)
    if made[:8] != found[:8]:
        raise Failure("a new folder has another inode when it is looked up")
    if mount.ask(MKDIR, _ROOT, struct.pack("<II", 0o755, 0) + name, room=128)[0] != errno.EEXIST:
        raise Failure("a folder that is there was made again")
    mount.ok(RMDIR, _ROOT, name, room=0)
    if mount.ask(LOOKUP, _ROOT, name, room=128)[0] != errno.ENOENT:
        raise Failure("a removed folder is still found")
