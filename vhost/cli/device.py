"""``vhost blk`` and its like: one device from the command line, made from the device type's declaration.

QEMU's back-end conventions hold: ``--socket-path`` or ``--fd``, ``--print-capabilities`` (other options are then
ignored), no daemon, quick clean exit 0 on SIGTERM, non-zero on early failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vhost.capabilities import capabilities
from vhost.config import CONNECTION_OPTIONS, SERVER_OPTIONS, Config, DeviceConfig, check_unique, with_companions
from vhost.plugin import ConfigError, DeviceType, Option

__all__ = ["click_option", "device_command"]


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # generic only in newer clicks
    ParamType = click.ParamType


class Value(ParamType):
    """A click parameter type that reads a value the way the configuration file does."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.metavar or option.kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The converted value; what does not fit ends the command with the reason."""
        try:
            return self.option.convert(value)
        except ConfigError as exc:
            self.fail(str(exc), param, ctx)


def click_option(option: Option) -> click.Option:
    """``option`` as a click option named as the user knows it."""
    if option.kind == "flag":
        return click.Option([f"--{option.name}"], is_flag=True, default=bool(option.default), help=option.help)
    if option.kind == "texts":
        name = option.metavar or "TEXT"
        help_ = f"{option.help}; may be repeated"
        return click.Option([f"--{option.name}"], multiple=True, metavar=name, default=option.default or (), help=help_)
    kind: ParamType = click.Choice(list(option.choices)) if option.kind == "choice" else Value(option)
    default = f"{option.default:o}" if option.kind == "mode" else option.default
    return click.Option(
        [f"--{option.name}"], type=kind, default=default, show_default=default is not None, help=option.help
    )


def _print_capabilities(device_type: DeviceType) -> click.Option:
    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(capabilities(device_type))
            ctx.exit(0)

    return click.Option(
        ["--print-capabilities"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="print what this back-end can, as JSON for libvirt, and exit",
    )


def _config(device_type: DeviceType, given: dict[str, Any]) -> Config:
    """The configuration of one device from all option values of the command line."""
    fd = given.pop("fd")
    name = given.pop("name")
    connection = {o.key: given.pop(o.key) for o in CONNECTION_OPTIONS}
    server = {o.key: given.pop(o.key) for o in SERVER_OPTIONS}
    ways = [connection["socket_path"] is not None, connection["connect"] is not None, fd is not None]
    if sum(ways) != 1:
        raise click.UsageError("give one of --socket-path PATH, --fd FDNUM and --connect PATH")
    for option in device_type.options:
        if option.required and given[option.key] is None:
            raise click.UsageError(f"option --{option.name} is missing: {option.help}")
    device = DeviceConfig(device_type, name or device_type.name, given, connection, -1 if fd is None else fd)
    devices = with_companions(device)
    check_unique(devices, device_type.name)
    return Config(server, devices)


class DeviceCommand(click.Command):
    """Answers ``--print-capabilities`` whatever else is on the line, be it of a later version."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, on that option alone where it is given."""
        wanted = "--print-capabilities"
        return super().parse_args(ctx, [wanted] if wanted in args else args)


def device_command(device_type: DeviceType) -> click.Command:
    """The command that serves one device of ``device_type``."""

    def run(**given: Any) -> None:
        from vhost.cli.run import run as serve

        serve(_config(device_type, given))

    params: list[click.Parameter] = [_print_capabilities(device_type)]
    params += [click_option(option) for option in CONNECTION_OPTIONS]
    params.append(
        click.Option(["--fd"], type=click.IntRange(min=0), metavar="FDNUM", help="serve this inherited socket")
    )
    params.append(click.Option(["--name"], metavar="NAME", help="name in logs, metrics and the control socket"))
    params += [click_option(option) for option in device_type.options]
    params += [click_option(option) for option in SERVER_OPTIONS]
    return DeviceCommand(
        device_type.name,
        callback=run,
        params=params,
        help=f"Serve {device_type.summary}.\n\n{device_type.parameter_help}".rstrip(),
        short_help=f"Serve {device_type.summary}",
    )
