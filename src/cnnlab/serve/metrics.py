"""Metrics of the service in Prometheus' text format, counted only in the event loop's thread."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of values up to each of `bounds`, with their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        """Return the samples of the histogram `name`."""
        total, lines = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum}", f"{name}_count {total}"]


class Metrics:
    """The counters of the service. requests: by path and status; images: by `ok` and `error`; the rest: see `text`."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.requests: Counter[tuple[str, int]] = Counter()
        self.images: Counter[str] = Counter(ok=0, error=0)
        self.seconds = Histogram(_SECONDS)
        self.batches = Histogram(_SIZES)

    def text(self, **gauges: int) -> str:
        """Return all metrics. gauges: current values that are counted elsewhere."""
        requests = [
            f'cnnlab_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        images = [f'cnnlab_images_total{{result="{result}"}} {count}' for result, count in self.images.items()]
        families = [
            ("cnnlab_info", "gauge", "The version that serves.", [f'cnnlab_info{{version="{self.version}"}} 1']),
            ("cnnlab_requests_total", "counter", "Requests by path and status.", requests),
            ("cnnlab_images_total", "counter", "Images, classified (ok) or not (error).", images),
            ("cnnlab_request_seconds", "histogram", "Seconds from a request's headers to its answer, of /predict.",
             self.seconds.lines("cnnlab_request_seconds")),
            ("cnnlab_batch_images", "histogram", "Images in a batch of the network.",
             self.batches.lines("cnnlab_batch_images")),
            *((f"cnnlab_{name}", "gauge", help_, [f"cnnlab_{name} {gauges[name]}"]) for name, help_ in _GAUGES.items()),
        ]  # fmt: skip
        lines = []
        for name, kind, help_, samples in families:
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", *samples]
        return "\n".join(lines) + "\n"


_GAUGES = {
    "queue_images": "Images accepted and not yet answered.",
    "body_bytes": "Bytes of request bodies in memory.",
    "connections": "Open connections.",
    "log_lines_dropped": "Lines of the log dropped because standard error was read too slowly.",
}
