"""QEMU guests: one dataclass says what the machine is, one block runs it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from guestlib import assets
from guestlib.agent import Agent
from guestlib.debian import locked
from guestlib.process import GuestError, Proc, connected, started
from guestlib.qmp import Qmp

_count = itertools.count(1)


@dataclass(frozen=True)
class VhostUser:
    """One vhost-user device of a machine.

    Args:
        socket: the back-end's socket.
        model: QEMU's device without ``-pci``, such as ``vhost-user-blk`` or ``vhost-user-rng``.
        num_queues: None leaves it to QEMU; only some models have the property (blk and scsi).
        reconnect: QEMU connects again, every second, when the back-end goes.
        iommu: DMA goes through the machine's virtual IOMMU.
        boot: the firmware boots from it.
        options: further properties, as on QEMU's command line.
    """

    socket: Path
    model: str = "vhost-user-blk"
    num_queues: int | None = 1
    queue_size: int | None = None
    packed: bool = False
    reconnect: bool = False
    iommu: bool = False
    boot: bool = False
    options: str = ""

    def words(self, number: int, version: tuple[int, int]) -> list[str]:
        """QEMU's words for the device, its ids numbered ``number``."""
        again = ("reconnect-ms=1000" if version >= (9, 2) else "reconnect=1") if self.reconnect else ""
        chardev = ",".join(filter(None, [f"socket,id=chr{number},path={self.socket}", again]))
        device = [f"{self.model}-pci", f"id=dev{number}", f"chardev=chr{number}"]
        if self.num_queues is not None and self.model in ("vhost-user-blk", "vhost-user-scsi"):
            device.append(f"num-queues={self.num_queues}")
        if self.queue_size is not None:
            device.append(f"queue-size={self.queue_size}")
        if self.packed:
            device.append("packed=on")
        if self.iommu:
            device.append("disable-legacy=on,iommu_platform=on,ats=on")
        if self.boot:
            device.append("bootindex=0")
        if self.options:
            device.append(self.options)
        return ["-chardev", chardev, "-device", ",".join(device)]


@dataclass(frozen=True)
class VhostFs:
    """One vhost-user file system of a machine; ``guestlib.fs.mount`` mounts it.

    Args:
        socket: the back-end's socket.
        tag: by which the guest mounts it.
        request_queues: None leaves it to QEMU (1).
        options: further properties, as on QEMU's command line.
    """

    socket: Path
    tag: str
    request_queues: int | None = None
    queue_size: int | None = None
    packed: bool = False
    options: str = ""

    def words(self, number: int, version: tuple[int, int]) -> list[str]:
        """QEMU's words for the device, its ids numbered ``number``."""
        device = [f"vhost-user-fs-pci,id=dev{number},chardev=chr{number},tag={self.tag}"]
        if self.request_queues is not None:
            device.append(f"num-request-queues={self.request_queues}")
        if self.queue_size is not None:
            device.append(f"queue-size={self.queue_size}")
        if self.packed:
            device.append("packed=on")
        if self.options:
            device.append(self.options)
        return ["-chardev", f"socket,id=chr{number},path={self.socket}", "-device", ",".join(device)]


@dataclass(frozen=True)
class VhostNet:
    """One vhost-user network card of a machine.

    Args:
        socket: the back-end's socket.
        pairs: queue pairs.
        mac: the card's address; empty leaves it to QEMU, which gives each machine's first card the same one.
        reconnect: QEMU connects again, every second, when the back-end goes.
        options: further properties of virtio-net-pci, as on QEMU's command line.
    """

    socket: Path
    pairs: int = 1
    mac: str = ""
    packed: bool = False
    reconnect: bool = False
    options: str = ""

    def words(self, number: int, version: tuple[int, int]) -> list[str]:
        """QEMU's words for the card, its ids numbered ``number``."""
        again = ("reconnect-ms=1000" if version >= (9, 2) else "reconnect=1") if self.reconnect else ""
        device = [f"virtio-net-pci,id=dev{number},netdev=net{number},romfile="]
        if self.mac:
            device.append(f"mac={self.mac}")
        if self.pairs > 1:
            device.append("mq=on")
        # QEMU 7.2 without KVM dies of a null pointer where a vhost-user card is to have MSI-X
        device.append("vectors=0" if version < (8, 0) else f"vectors={2 * self.pairs + 2}")
        if self.packed:
            device.append("packed=on")
        if self.options:
            device.append(self.options)
        return [
            "-chardev",
            ",".join(filter(None, [f"socket,id=chr{number},path={self.socket}", again])),
            "-netdev",
            f"vhost-user,id=net{number},chardev=chr{number},queues={self.pairs}",
            "-device",
            ",".join(device),
        ]


@dataclass(frozen=True)
class VhostGpu:
    """One vhost-user display of a machine; it needs a kernel with its driver, and a QEMU newer than 7.2, or KVM.

    Args:
        socket: the back-end's socket.
        outputs: monitors it can have.
        vga: a VGA card, too, which firmware can use.
        options: further properties, as on QEMU's command line.
    """

    socket: Path
    outputs: int = 1
    packed: bool = False
    vga: bool = False
    options: str = ""

    def words(self, number: int, version: tuple[int, int]) -> list[str]:
        """QEMU's words for the device, its ids numbered ``number``."""
        kind = "vhost-user-vga" if self.vga else "vhost-user-gpu-pci"
        device = [f"{kind},id=dev{number},chardev=chr{number},max_outputs={self.outputs}"]
        if self.packed:
            device.append("packed=on")
        if self.options:
            device.append(self.options)
        return ["-chardev", f"socket,id=chr{number},path={self.socket}", "-device", ",".join(device)]


@dataclass(frozen=True)
class QemuConfig:
    """A machine.

    Args:
        devices: its vhost-user devices, in PCI order: the first disk is /dev/vda, the first card eth0.
        memory: ``memfd``, ``hugepages`` (memfd of 2 MiB pages) or ``file`` (a file below the guest's folder).
        hotplug_mib: room for memory that is plugged in later, in MiB.
        root_ports: PCIe ports for devices that are plugged in later (``bus=port0`` …).
        iommu: a virtual IOMMU that translates all DMA of devices that ask for it.
        from_disk: no kernel is given: the firmware boots the machine's disk.
        reboots: a reboot in the guest restarts the machine instead of ending QEMU.
        incoming: wait for a migration; there is no boot to wait for.
        kernel: another kernel than Debian's cloud kernel.
        drivers: modules beyond the usual ones.
        append: words for the kernel's command line.
        extra: words for QEMU's command line.
    """

    devices: tuple[VhostUser | VhostNet | VhostFs | VhostGpu, ...] = ()
    memory_mib: int = 320
    smp: int = 2
    memory: str = "memfd"
    hotplug_mib: int = 0
    root_ports: int = 0
    iommu: bool = False
    from_disk: bool = False
    reboots: bool = False
    incoming: bool = False
    kernel: assets.Kernel | None = None
    drivers: tuple[str, ...] = ()
    append: str = ""
    extra: tuple[str, ...] = ()
    qemu: assets.Qemu = field(default_factory=assets.system_qemu)
    accel: str | None = None
    boot_timeout: float = 120

    @property
    def memory_kib(self) -> int:
        """How much memory it has, in KiB; by half a dirty-log word more than asked for, where that is possible.

        Without KVM, QEMU takes whole words of its dirty bitmap at once where memory is made of whole words, and forgets
        to watch the virtual CPUs' next writes when all it found was known before: what they write until the next
        round does not arrive at the target of a migration. Page by page it does not forget.
        """
        whole = self.memory == "hugepages" or self.hotplug_mib
        return self.memory_mib * 1024 + (0 if whole else 128)

    def words(self, folder: Path, accel: str) -> list[str]:
        """The whole command line, its sockets and logs in ``folder``."""
        version = _version(self.qemu)
        machine = ["q35", "memory-backend=ram0"]
        if accel == "kvm" and self.iommu:
            machine.append("kernel-irqchip=split")
        memory = f"{self.memory_kib}K" + (
            f",slots=4,maxmem={self.memory_mib + self.hotplug_mib}M" if self.hotplug_mib else ""
        )
        words = [
            *self.qemu.command,
            "-nodefaults",
            "-display",
            "none",
            "-machine",
            ",".join(machine),
            "-accel",
            "kvm" if accel == "kvm" else "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            str(self.smp),
            "-m",
            memory,
            "-object",
            memory_object("ram0", self.memory_kib, self.memory, folder),
            "-serial",
            f"file:{folder}/console.log",
            "-chardev",
            f"socket,id=agent,path={folder}/agent.sock,server=on,wait=off",
            "-serial",
            "chardev:agent",
            "-chardev",
            f"socket,id=qmp,path={folder}/qmp.sock,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
        ]
        if self.iommu:
            # before the devices: each asks at its birth who translates for it
            words += ["-device", "intel-iommu,device-iotlb=on,intremap=off,caching-mode=off"]
        for port in range(self.root_ports):
            words += ["-device", f"pcie-root-port,id=port{port},chassis={port + 1}"]
        for number, device in enumerate(self.devices):
            words += device.words(number, version)
        if not self.from_disk:
            kernel = self.kernel or assets.debian_kernel()
            words += [
                "-kernel",
                str(assets.unpacked(kernel)),
                "-initrd",
                str(assets.initramfs(kernel, drivers=(*assets.DRIVERS, *self.drivers))),
                "-append",
                self._command_line(),
            ]
        if not self.reboots:
            words.append("-no-reboot")
        if self.incoming:
            words += ["-incoming", "defer"]
        return [*words, *self.extra]

    def _command_line(self) -> str:
        # no_timer_check: on a busy host the emulated timer may miss the few ticks the kernel counts at boot
        words = ["console=ttyS0", "quiet", "panic=-1", "no_timer_check", "agent=ttyS1"]
        if self.iommu:
            words += ["intel_iommu=on", "iommu=nopt", "iommu.strict=1"]
        return " ".join([*words, self.append]).strip()


def memory_object(name: str, size_kib: int, kind: str, folder: Path) -> str:
    """QEMU's words for ``size_kib`` KiB of shared memory of ``kind`` (see QemuConfig.memory)."""
    common = f"id={name},size={size_kib}K,share=on"
    if kind == "memfd":
        return f"memory-backend-memfd,{common}"
    if kind == "hugepages":
        return f"memory-backend-memfd,{common},hugetlb=on,hugetlbsize=2M"
    if kind == "file":
        return f"memory-backend-file,{common},mem-path={folder}/{name}.mem"
    raise ValueError(f"memory '{kind}'; use memfd, hugepages or file")


@functools.cache
def _version(qemu: assets.Qemu) -> tuple[int, int]:
    return assets.qemu_version(qemu)


class QemuGuest:
    """A running machine: ``agent`` speaks to the guest in it, ``qmp`` to QEMU."""

    def __init__(self, config: QemuConfig, accel: str, folder: Path, proc: Proc, agent: Agent, qmp: Qmp) -> None:
        self.config = config
        self.accel = accel
        self.folder = folder
        self.proc = proc
        self.agent = agent
        self.qmp = qmp
        self.run = agent.run
        self.output = agent.output

    @property
    def console(self) -> str:
        """What the guest's kernel has printed."""
        return (self.folder / "console.log").read_text(errors="replace")

    async def kill(self) -> None:
        """SIGKILL QEMU: a crash of the VMM."""
        await self.proc.kill()

    async def power_off(self, timeout: float = 60) -> None:
        """Let the guest switch itself off and QEMU end."""
        await self.agent.send("sync; poweroff -f")
        status = await self.proc.wait(timeout)
        if status != 0:
            raise self.proc.fail(f"ended with status {status}")

    async def reboot(self, timeout: float = 120) -> None:
        """Reboot the guest by its own command and wait until it takes commands again."""
        if not self.config.reboots:
            raise ValueError("the machine was made with reboots=False")
        await self.agent.send("reboot -f")
        await self.agent.wait_ready(timeout)

    async def reset(self, timeout: float = 120) -> None:
        """Press the reset button, whatever the guest is doing, and wait until it takes commands again."""
        if not self.config.reboots:
            raise ValueError("the machine was made with reboots=False")
        await self.qmp.execute("system_reset")
        await self.agent.wait_ready(timeout)

    async def plug_memory(self, name: str, size_mib: int) -> None:
        """Plug ``size_mib`` MiB in as a DIMM; the guest's init puts it to use at once."""
        kind = {"memfd": {}, "hugepages": {"hugetlb": True, "hugetlbsize": 2 << 20}}[self.config.memory]
        await self.qmp.execute(
            "object-add", qom_type="memory-backend-memfd", id=f"mem-{name}", size=size_mib << 20, share=True, **kind
        )
        await self.qmp.execute("device_add", driver="pc-dimm", id=name, memdev=f"mem-{name}")

    async def migrate_to(self, target: QemuGuest, *, postcopy: bool = False, timeout: float = 120) -> dict[str, Any]:
        """Migrate the running guest into ``target`` (made with incoming=True); QEMU's last ``query-migrate``.

        Args:
            postcopy: start with precopy, then switch over while the guest's memory is still here.
        """
        socket = f"unix:{target.folder}/migrate.sock"
        if postcopy:
            switches = [{"capability": "postcopy-ram", "state": True}]
            await self.qmp.execute("migrate-set-capabilities", capabilities=switches)
            await target.qmp.execute("migrate-set-capabilities", capabilities=switches)
        await target.qmp.execute("migrate-incoming", uri=socket)
        if postcopy:  # slow enough that memory is left to fetch after the switch
            await self.qmp.execute("migrate-set-parameters", max_bandwidth=40 << 20)
        await self.qmp.execute("migrate", uri=socket)
        switched = False
        with trio.move_on_after(timeout):
            while True:
                state: dict[str, Any] = await self.qmp.execute("query-migrate")
                status = state.get("status")
                if status == "completed":
                    await target.wait_running()
                    return state
                if status in ("failed", "cancelled"):
                    raise self.proc.fail(f"migration {status}: {state.get('error-desc', 'no reason given')}")
                if postcopy and status == "active" and not switched and state["ram"]["transferred"] > 4 << 20:
                    await self.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 30)
                    await self.qmp.execute("migrate-start-postcopy")
                    switched = True
                await trio.sleep(0.1)
        raise self.proc.fail(f"migration did not complete within {timeout:g} s: {state}")

    async def wait_running(self, timeout: float = 60) -> None:
        """Wait until QEMU's virtual CPUs run, as after an incoming migration."""
        with trio.move_on_after(timeout):
            while (await self.qmp.execute("query-status"))["status"] != "running":
                await trio.sleep(0.05)
            return
        raise self.proc.fail(f"does not run within {timeout:g} s")


@contextlib.asynccontextmanager
async def boot_qemu(config: QemuConfig, folder: Path, *, name: str | None = None) -> AsyncIterator[QemuGuest]:
    """Run a machine for the length of the block, booted and taking commands (unless ``incoming``).

    Args:
        folder: logs go below it.
        name: how errors call the guest.
    Cancellation: kills QEMU.
    """
    name = name or f"qemu{next(_count)}"
    home = folder / name
    home.mkdir(parents=True)
    accel = config.accel or await find_accel(config.qemu)
    # socket paths are short: a test's own folder may be too deep for sun_path
    with tempfile.TemporaryDirectory(prefix="vhk-") as short:
        run = Path(short)
        (run / "console.log").symlink_to(home / "console.log")
        (home / "console.log").touch()
        async with contextlib.AsyncExitStack() as stack:
            words = config.words(run, accel)
            proc = await stack.enter_async_context(started(name, words, home / "qemu.log", env=dict(config.qemu.env)))
            qmp = Qmp(await connected(run / "qmp.sock", proc, "its monitor"))
            stack.push_async_callback(qmp.aclose)
            try:
                await qmp.negotiate()
            except GuestError:
                await proc.wait(5)
                raise proc.fail("ended before its machine was made") from None
            agent = Agent(name, await connected(run / "agent.sock", proc, "its serial line"), home / "console.log")
            stack.push_async_callback(agent.aclose)
            guest = QemuGuest(config, accel, run, proc, agent, qmp)
            if not config.incoming:
                await agent.wait_ready(config.boot_timeout)
            yield guest


async def find_accel(qemu: assets.Qemu) -> str:
    """``kvm`` where a stock kernel boots under it within seconds, else ``tcg``; tried once per host kernel and QEMU."""
    key = f"accel-{os.uname().release}-{qemu.name}-{_version(qemu)[0]}.{_version(qemu)[1]}"
    found = assets.GUEST / key
    if found.exists():
        return found.read_text()
    accel = "tcg"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        with tempfile.TemporaryDirectory(prefix="vhk-accel-") as folder:
            try:
                config = QemuConfig(qemu=qemu, memory_mib=256, accel="kvm", boot_timeout=12)
                async with boot_qemu(config, Path(folder), name="kvm-probe"):
                    accel = "kvm"
            except GuestError:
                pass
    with locked("accel"):
        found.write_text(accel)
    return accel


def without_kernel(config: QemuConfig) -> QemuConfig:
    """``config`` booting from its first device."""
    first, *rest = config.devices
    assert isinstance(first, VhostUser)
    return replace(config, from_disk=True, devices=(replace(first, boot=True), *rest))


def stop(guest: QemuGuest) -> None:
    """SIGSTOP QEMU: a VMM that does nothing for a while."""
    guest.proc.signal(signal.SIGSTOP)
