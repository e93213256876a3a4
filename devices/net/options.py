"""What ``vhost net`` and a ``[[device]]`` table of type "net" take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.net.device import Net
from devices.net.links.base import LinkError, NetLink
from devices.net.links.echo import EchoLink, NullLink, SourceLink
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option

__all__ = ["OPTIONS", "TYPE", "open_net"]

OPTIONS = (
    Option("echo", "flag", "give every frame back", False),
    Option("null", "flag", "swallow every frame", False),
    Option("source", "size", "send frames of so many bytes as fast as the guest takes them", metavar="BYTES"),
    Option("mac", "text", "the card's address; QEMU and cloud-hypervisor have their own option", metavar="MAC"),
    Option("mtu", "int", "largest packet the guest is told of, bytes", minimum=68, maximum=65535),
    Option("queues", "int", "pairs of queues; the guest may use fewer", 1, minimum=1, maximum=16),
    Option("queue-size", "int", "largest queue the front-end may ask for", 1024, minimum=2, maximum=32768),
    Option("no-offloads", "flag", "guests fill in checksums and cut segments themselves", False),
    Option("no-mergeable", "flag", "every frame fits into one receive buffer", False),
)

_LINKS = ("echo", "null", "source")


async def _open_link(values: Mapping[str, Any]) -> NetLink:
    """The one link that `values` name."""
    chosen = [name for name in _LINKS if values[name]]
    if len(chosen) != 1:
        raise ConfigError(f"give one of {', '.join(_LINKS)}: what the card is plugged into")
    if values["echo"]:
        return EchoLink()
    if values["null"]:
        return NullLink()
    return SourceLink(values["source"])


@asynccontextmanager
async def open_net(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The card that option values (of `OPTIONS`) describe; its link is closed at the exit.

    Raises:
        ConfigError: the user can mend it.
    """
    try:
        link = await _open_link(values)
    except LinkError as exc:
        raise ConfigError(str(exc)) from exc
    async with link:
        try:
            card = Net(
                link,
                pairs=values["queues"],
                mac=values["mac"],
                mtu=values["mtu"],
                queue_size=values["queue_size"],
                offloads=not values["no_offloads"],
                mergeable=not values["no_mergeable"],
            )
        except (LinkError, ValueError) as exc:
            raise ConfigError(str(exc)) from exc
        try:
            yield card
        finally:
            card.close()


TYPE = DeviceType(
    name="net",
    backend_type="net",
    summary="a network card (virtio-net)",
    options=OPTIONS,
    open=open_net,
)
