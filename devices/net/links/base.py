"""What a card is plugged into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NewType

from _cffi_backend import FFI

from vhost import DeviceError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import ring
    from devices.net.capture import PortCapture
    from devices.net.device import Net
    from vhost import Metric

__all__ = ["LinkError", "NetLink", "PortPtr"]

#: a ``struct net_port *``
PortPtr = NewType("PortPtr", FFI.CData)


class LinkError(DeviceError):
    """A link cannot be had: the message says what is wrong, where, and what to do."""


class NetLink(ABC):
    """Where a card's frames go and come from; one object may serve many cards, as a switch does.

    A card calls `port_for` when it is made and `release` when it is closed. In between, for each pair of rings that a
    driver starts, it calls `started`, and `stopped` when that ends; all on the event loop's thread.
    """

    #: frames may be given to any pair of a card, since all of them are on one worker: see `worker_key`
    shared: bool = False

    @property
    @abstractmethod
    def description(self) -> str:
        """For messages and the control socket: ``tap vm0``, ``switch lan``."""

    @abstractmethod
    def port_for(self, card: Net) -> PortPtr:
        """The port that `card` is to be connected to; stays the link's.

        Raises:
            LinkError: it cannot take this card, in words.
        """

    def release(self, card: Net) -> None:  # noqa: B027 - most links have nothing to do
        """The card is unplugged: its port is not connected any more, no ring of it runs."""

    def parked(self) -> AbstractContextManager[None]:
        """While a card is plugged in or out: nobody runs that may reach its port by the link."""
        return nullcontext()

    def worker_key(self, card: Net, pair: int) -> Hashable | None:
        """Rings with equal keys are placed on one worker. None: the pair's two rings are, with nobody else.

        Constant while a ring of the pair runs.
        """
        return None

    def started(self, card: Net, pair: int, worker: ring.Worker) -> None:  # noqa: B027
        """The pair's receive ring is about to run on `worker`, which is parked: add sources of your own."""

    def stopped(self, card: Net, pair: int, worker: ring.Worker) -> None:  # noqa: B027
        """It runs no more; `worker` is parked: remove what was added."""

    def enabled(self, card: Net, pair: int, on: bool) -> None:  # noqa: B027
        """The guest uses the pair, or leaves it alone, while its rings run; their worker is parked."""

    async def run(self) -> None:  # noqa: B027
        """Background work, beside each card that is being served; cancelled at the end."""

    def port_capture(self, port: str) -> PortCapture:
        """Of the port called `port`, for links that have such.

        Raises:
            ValueError: it has none, in words.
        """
        raise ValueError(f"{self.description} is no switch: leave the port away")

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """Methods for the control socket, beside the card's own."""
        return {}

    def metrics(self) -> Iterable[Metric]:
        """Values now, beside the card's own."""
        return ()

    async def aclose(self) -> None:  # noqa: B027
        """Give back what it holds; its cards are closed. May be called again."""

    async def __aenter__(self) -> Self:
        """The link, which is closed at the end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()
