"""Prometheus text and the exporter."""

import math
import urllib.request

import trio

from vhost.device import Metric
from vhost.metrics import exporter, prometheus_text


def values():  # type: ignore[no-untyped-def]
    def of(n: int) -> list[Metric]:
        return [
            Metric("requests_total", "counter", "Requests", n, {"op": "read"}),
            Metric("queue_depth", "gauge", "In flight", 2),
            Metric("latency_seconds", "histogram", "Latency", 0.5, {}, [(0.1, 1), (math.inf, 3)]),
        ]

    return [({"device": "a"}, of(1)), ({"device": 'b"'}, of(5))]


def test_text() -> None:
    text = prometheus_text(values)
    assert text.count("# TYPE vhost_requests_total counter") == 1  # one family, two devices
    assert 'vhost_requests_total{device="a",op="read"} 1.0' in text
    assert 'vhost_requests_total{device="b\\"",op="read"} 5.0' in text
    assert 'vhost_latency_seconds_bucket{device="a",le="0.1"} 1.0' in text
    assert 'vhost_latency_seconds_bucket{device="a",le="+Inf"} 3.0' in text
    assert 'vhost_latency_seconds_sum{device="a"} 0.5' in text


async def test_exporter_reads_on_trios_thread() -> None:
    seen = []

    def source():  # type: ignore[no-untyped-def]
        seen.append(trio.lowlevel.in_trio_run())
        return values()

    def get(port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            text: str = response.read().decode()
            return text

    async with exporter(source, "127.0.0.1", 0) as port:
        text = await trio.to_thread.run_sync(get, port)
    assert "vhost_queue_depth" in text
    assert seen
    assert all(seen)
