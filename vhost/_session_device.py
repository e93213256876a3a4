"""Handlers of messages about negotiation and the device itself. See session.py."""

from vhost._session_state import Plan, Refused, Ring, SessionState, one_fd
from vhost.actions import (
    Action,
    CheckState,
    GetConfig,
    GetSharedObject,
    LoadState,
    ResetDevice,
    SaveState,
    SendRarp,
    SetBackendChannel,
    SetConfig,
    SetFeatures,
    SetGpuSocket,
    SetLogging,
    SetMtu,
    SetProtocolFeatures,
    SetStatus,
    StopQueue,
)
from vhost.constants import (
    MAX_CONFIG_SIZE,
    STATE_NO_FD,
    DeviceType,
    ProtocolFeature,
    StateDirection,
    VirtioFeature,
)
from vhost.errors import ProtocolError
from vhost.fds import Fds, OwnedFd
from vhost.messages import Config, Message, SharedObject, ShmemConfig, StateTransfer, mac_of_rarp

_TOLERATED = int(VirtioFeature.RING_RESET)
"""QEMU's vhost-user-gpu acknowledges it though not offered (ring reset is the front-end's business anyway)."""

_FREE_WHILE_RUNNING = int(VirtioFeature.LOG_ALL | VirtioFeature.PROTOCOL_FEATURES)
"""Bits that may change while rings run: dirty logging begins and ends under a running guest."""


def _bit_text(bits: int) -> str:
    return ", ".join(_bit_name(bit) for bit in range(bits.bit_length()) if bits >> bit & 1)


def _bit_name(bit: int) -> str:
    try:
        return f"{VirtioFeature(1 << bit).name or 'device bit'} ({bit})"
    except ValueError:
        return f"bit {bit}"


def _u64(message: Message) -> int:
    payload = message.payload
    assert isinstance(payload, int)
    return payload


def get_features(state: SessionState, message: Message) -> Plan:
    """GET_FEATURES."""
    return Plan(done=lambda _result: message.reply(state.offered))


def set_features(state: SessionState, message: Message) -> Plan:
    """SET_FEATURES; may come repeatedly, and with LOG_ALL on or off while rings run."""
    value = _u64(message)
    unoffered = value & ~state.offered & ~_TOLERATED
    if unoffered:
        raise Refused(f"features that were not offered: {_bit_text(unoffered)}")
    features = value & state.offered
    changed = features ^ state.features
    if state.started_rings and changed & ~_FREE_WHILE_RUNNING:
        raise Refused(f"features change while rings run: {_bit_text(changed & ~_FREE_WHILE_RUNNING)}")
    actions: list[Action] = []
    if not state.features_set or changed & ~VirtioFeature.LOG_ALL:
        actions.append(SetFeatures(features))
    if changed & VirtioFeature.LOG_ALL:
        actions.append(SetLogging(bool(features & VirtioFeature.LOG_ALL)))
    actions += state.enable_changes(features=features)

    def done(_result: object) -> None:
        state.features = features
        state.features_set = True

    return Plan(actions, done)


def get_protocol_features(state: SessionState, message: Message) -> Plan:
    """GET_PROTOCOL_FEATURES."""
    return Plan(done=lambda _result: message.reply(int(state.offered_protocol)))


def set_protocol_features(state: SessionState, message: Message) -> Plan:
    """SET_PROTOCOL_FEATURES. With INBAND_NOTIFICATIONS both BACKEND_REQ and REPLY_ACK are needed [rst]."""
    value = _u64(message)
    unoffered = value & ~int(state.offered_protocol)
    if unoffered:
        raise Refused(f"protocol features that were not offered: {unoffered:#x}")
    acked = ProtocolFeature(value)
    needed = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
    if ProtocolFeature.INBAND_NOTIFICATIONS in acked and needed not in acked:
        raise ProtocolError("INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK too", message.request)

    def done(_result: object) -> None:
        state.protocol = acked

    return Plan([SetProtocolFeatures(value)], done)


def set_owner(_state: SessionState, _message: Message) -> Plan:
    """SET_OWNER: nothing to do; a connection has one owner."""
    return Plan()


def reset_owner(state: SessionState, _message: Message) -> Plan:
    """RESET_OWNER (deprecated): disables all rings, as the specification recommends."""

    def done(_result: object) -> None:
        for ring in state.rings:
            ring.enable = False

    return Plan(state.enable_changes(enable=False), done)


def reset_device(state: SessionState, _message: Message) -> Plan:
    """RESET_DEVICE: rings back to their first state; connection, memory, channel and features stay."""

    def done(_result: object) -> None:
        state.rings = [Ring(index) for index in range(len(state.rings))]
        state.features_set = False
        state.status = 0

    stops: list[Action] = [StopQueue(ring.index) for ring in state.started_rings]
    return Plan([*stops, ResetDevice()], done, fatal=True)


def get_queue_num(state: SessionState, message: Message) -> Plan:
    """GET_QUEUE_NUM: the number of rings; cloud-hypervisor compares it with rings, QEMU with pairs or fewer."""
    return Plan(done=lambda _result: message.reply(len(state.rings)))


def get_max_mem_slots(state: SessionState, message: Message) -> Plan:
    """GET_MAX_MEM_SLOTS: constant, QEMU refuses a value that shrinks over a reconnect."""
    return Plan(done=lambda _result: message.reply(state.device.max_mem_slots))


def set_status(state: SessionState, message: Message) -> Plan:
    """SET_STATUS: the device learns of it; rings and their indexes are not touched, not even by 0."""
    value = _u64(message)
    if value > 0xFF:
        raise Refused(f"status {value:#x} has more than 8 bits")

    def done(_result: object) -> None:
        state.status = value

    return Plan([SetStatus(value)], done)


def get_status(state: SessionState, message: Message) -> Plan:
    """GET_STATUS."""
    return Plan(done=lambda _result: message.reply(state.status))


def get_config(state: SessionState, message: Message) -> Plan:
    """GET_CONFIG: as many bytes as asked; beyond the device's own they are zero.

    cloud-hypervisor's generic device dies when a read fails, so every read within 256 bytes succeeds. A front-end that
    sends a larger buffer than it asks for (SPDK) gets it back in full.
    """
    payload = message.payload
    assert isinstance(payload, Config)
    if payload.offset + payload.size > MAX_CONFIG_SIZE:
        raise Refused(f"{payload.size} bytes at {payload.offset} lie beyond {MAX_CONFIG_SIZE} bytes of configuration")
    room = max(0, min(payload.size, state.device.config_size - payload.offset))

    def done(result: object) -> Message:
        if room and not isinstance(result, bytes | bytearray | memoryview):
            raise TypeError(f"GetConfig must return bytes, not {result!r}")
        data = bytes(result)[:room] if room else b""  # type: ignore[call-overload]
        data = data.ljust(max(payload.size, len(payload.data)), b"\0")
        return message.reply(Config(payload.offset, payload.size, payload.flags, data))

    return Plan([GetConfig(payload.offset, room)] if room else (), done)


def set_config(state: SessionState, message: Message) -> Plan:
    """SET_CONFIG. The flags are not judged: front-ends do not agree on them."""
    payload = message.payload
    assert isinstance(payload, Config)
    if payload.size > len(payload.data):
        raise Refused(f"{payload.size} bytes are announced, {len(payload.data)} came")
    if payload.size == 0:
        raise Refused("nothing to write")
    if payload.offset + payload.size > state.device.config_size:
        raise Refused(
            f"{payload.size} bytes at {payload.offset} lie beyond {state.device.config_size} bytes of configuration"
        )
    return Plan([SetConfig(payload.offset, payload.data[: payload.size], payload.flags)])


def set_backend_req_fd(_state: SessionState, message: Message) -> Plan:
    """SET_BACKEND_REQ_FD: our own channel; a new one replaces the old."""
    return Plan([SetBackendChannel(one_fd(message))])


def gpu_set_socket(state: SessionState, message: Message) -> Plan:
    """GPU_SET_SOCKET: QEMU sends a new one at each start of the driver."""
    if state.device.device_id != DeviceType.GPU:
        raise Refused("this device is no GPU")
    return Plan([SetGpuSocket(one_fd(message))])


def send_rarp(_state: SessionState, message: Message) -> Plan:
    """SEND_RARP."""
    return Plan([SendRarp(mac_of_rarp(_u64(message)))])


def net_set_mtu(_state: SessionState, message: Message) -> Plan:
    """NET_SET_MTU. Spec: VIRTIO 1.3, 5.1.4."""
    mtu = _u64(message)
    if not 68 <= mtu <= 65535:
        raise Refused(f"MTU {mtu} is not in 68-65535")
    return Plan([SetMtu(mtu)])


def crypto_session(_state: SessionState, _message: Message) -> Plan:
    """CREATE_CRYPTO_SESSION and CLOSE_CRYPTO_SESSION."""
    raise Refused("crypto sessions are not supported, and CRYPTO_SESSION was not offered")


def get_shared_object(_state: SessionState, message: Message) -> Plan:
    """GET_SHARED_OBJECT: with a descriptor if found. Older QEMU sends no uuid: nothing is found then."""
    payload = message.payload
    if not isinstance(payload, SharedObject):
        return Plan(done=lambda _result: message.reply())

    def done(result: object) -> Message:
        if result is not None and not isinstance(result, OwnedFd):
            raise TypeError(f"GetSharedObject must return an OwnedFd or None, not {result!r}")
        return message.reply(None, Fds() if result is None else Fds([result.move()]))

    return Plan([GetSharedObject(payload.uuid)], done)


def get_shmem_config(state: SessionState, message: Message) -> Plan:
    """GET_SHMEM_CONFIG."""
    return Plan(done=lambda _result: message.reply(ShmemConfig.of(dict(state.device.shmem))))


def set_device_state_fd(state: SessionState, message: Message) -> Plan:
    """SET_DEVICE_STATE_FD: only while all rings are stopped [rst "Migrating back-end state"]. We use the fd given."""
    payload = message.payload
    assert isinstance(payload, StateTransfer)
    if payload.phase != 0:
        raise Refused(f"unknown migration phase {payload.phase}")
    if payload.direction not in (StateDirection.SAVE, StateDirection.LOAD):
        raise Refused(f"unknown transfer direction {payload.direction}")
    _must_be_stopped(state)
    fd = one_fd(message)
    action = SaveState(fd) if payload.direction == StateDirection.SAVE else LoadState(fd)
    return Plan([action], lambda _result: message.reply(STATE_NO_FD))


def check_device_state(state: SessionState, message: Message) -> Plan:
    """CHECK_DEVICE_STATE: 0 if the last transfer ended well."""
    _must_be_stopped(state)
    return Plan([CheckState()], lambda _result: message.reply(0))


def _must_be_stopped(state: SessionState) -> None:
    if state.started_rings:
        running = ", ".join(str(ring.index) for ring in state.started_rings)
        raise Refused(f"the device's rings must be stopped first, running: {running}")
