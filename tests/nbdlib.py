"""NBD servers for tests, and images for them."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

from guestlib.process import FOREIGN

SIZE = 16 << 20


class Server:
    """An NBD server at a Unix socket, which can be killed and started again."""

    def __init__(self, *command: str, path: Path, export: str = "") -> None:
        self.command = command
        self.path = path
        self.uri = f"nbd+unix:///{export}?socket={path}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert self.process is None
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=FOREIGN)
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, f"{self.command[0]} ended at once"
            assert time.monotonic() < end, f"{self.command[0]} does not listen"
            time.sleep(0.01)

    def _answers(self) -> bool:
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        # 0x10000: it listens
        return any(line[-1] == str(self.path) and int(line[3], 16) & 0x10000 for line in lines[1:])

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it; nbdkit does not heed SIGTERM while a client is idle."""
        if self.process is not None:
            self.process.send_signal(number)
            if number != signal.SIGKILL:
                self.process.send_signal(signal.SIGCONT)
            self.process.wait(10)
            self.process = None


def raw_image(tmp_path: Path, size: int = SIZE) -> Path:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    return image


def qcow2_image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True, env=FOREIGN)
    return image


def pattern(n: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(n)
