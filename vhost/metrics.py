"""Counters of devices as Prometheus text, through prometheus-client.

A scrape comes on the exporter's own thread; the values are read on trio's, so that no device goes away meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager

import prometheus_client
import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from vhost.device import Metric

__all__ = ["DeviceCollector", "exporter", "prometheus_text"]

PREFIX = "vhost_"

#: called at each scrape: device labels and its values
MetricSource = Callable[[], Iterable[tuple[Mapping[str, str], Iterable[Metric]]]]


class DeviceCollector(Collector):
    """Turns what devices report into Prometheus families.

    Args:
        source: Called at each scrape.
    """

    def __init__(self, source: MetricSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Family]:
        """All families, each once, with the samples of every device."""
        families: dict[str, Family] = {}
        for device_labels, metrics in self._source():
            for metric in metrics:
                labels = {**device_labels, **metric.labels}
                family = families.get(metric.name)
                if family is None:
                    family = families[metric.name] = _family(metric, list(labels))
                _add(family, metric, list(labels.values()))
        yield from families.values()


def _family(metric: Metric, labels: list[str]) -> Family:
    name = PREFIX + metric.name
    if metric.kind == "counter":
        return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=labels)
    if metric.kind == "gauge":
        return GaugeMetricFamily(name, metric.help, labels=labels)
    return HistogramMetricFamily(name, metric.help, labels=labels)


def _add(family: Family, metric: Metric, labels: list[str]) -> None:
    if isinstance(family, HistogramMetricFamily):
        buckets = [("+Inf" if bound == float("inf") else repr(float(bound)), count) for bound, count in metric.buckets]
        family.add_metric(labels, buckets=buckets, sum_value=metric.value)
    elif isinstance(family, (CounterMetricFamily, GaugeMetricFamily)):
        family.add_metric(labels, metric.value)


def prometheus_text(source: MetricSource) -> str:
    """The values of now in Prometheus' text format."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(DeviceCollector(source))
    return prometheus_client.generate_latest(registry).decode()


@asynccontextmanager
async def exporter(source: MetricSource, address: str, port: int) -> AsyncIterator[int]:
    """Serve ``/metrics`` over HTTP while the context lasts; the port it listens on (for port 0).

    Args:
        source: Called on trio's thread at each scrape.
        address: Where to listen; loopback unless the user says otherwise.
        port: TCP port, 0 for any.

    Raises:
        OSError: the address is in use or not ours.
    """
    token = trio.lowlevel.current_trio_token()

    def on_trio() -> list[tuple[Mapping[str, str], Iterable[Metric]]]:
        try:
            return trio.from_thread.run_sync(lambda: [(k, list(v)) for k, v in source()], trio_token=token)
        except trio.RunFinishedError:
            return []

    registry = prometheus_client.CollectorRegistry()
    registry.register(DeviceCollector(on_trio))
    logging.getLogger("prometheus_client").setLevel(logging.WARNING)
    server, thread = prometheus_client.start_http_server(port, addr=address, registry=registry)
    try:
        yield server.server_port
    finally:
        with trio.CancelScope(shield=True):
            # the last scrape may be waiting for trio's thread
            await trio.to_thread.run_sync(server.shutdown)
            server.server_close()
            await trio.to_thread.run_sync(thread.join)
