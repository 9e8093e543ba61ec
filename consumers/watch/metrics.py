"""A consumer's figures in the formats of Prometheus. Importing it needs the extra `metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from consumers.watch.figures import WRITE_BOUNDS_S, Figures, Stage, System

__all__ = ["Metrics"]

PREFIX = "crawlbus_consumer"
SYSTEMS: tuple[System, ...] = ("bus", "sink")


class Metrics:
    """What `/metrics` answers; memory and CPU of the process are among it."""

    def __init__(self, figures: Figures) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(figures))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body, and its content type, in the format that an `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Figures(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield self._counter("items_stored", "Items written to the sink.", figures.items_stored)
        yield self._counter("quarantined", "Messages and items that went to quarantine.", figures.quarantined)
        yield self._counter("sanitized", "Values stored in another form, as the sink cannot hold them.",
                            figures.sanitized)  # fmt: skip
        yield self._counter("gaps", "Gaps in the log that were accepted and recorded.", figures.gaps)
        yield self._counter("read_bytes", "Bytes of messages read from the log.", figures.bytes_read)
        yield self._write_seconds()
        yield self._gauge("active", "1 while it holds partitions and stores, else 0.",
                          float(figures.stage is Stage.ACTIVE))  # fmt: skip
        yield self._gauge("partitions_held", "Partitions of the log that it holds.", len(figures.shares))
        yield from self._shares()
        yield self._outages()

    def _counter(self, name: str, meaning: str, value: float) -> Metric:
        family = CounterMetricFamily(f"{PREFIX}_{name}", meaning, labels=("consumer",))
        family.add_metric((self._figures.consumer,), value)
        return family

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=("consumer",))
        family.add_metric((self._figures.consumer,), value)
        return family

    def _write_seconds(self) -> Metric:
        counts = list(accumulate(self._figures.write_counts))
        bounds = [*map(str, WRITE_BOUNDS_S), "+Inf"]
        family = HistogramMetricFamily(
            f"{PREFIX}_batch_write_seconds", "How long the sink took to store a batch.", labels=("consumer",)
        )
        family.add_metric((self._figures.consumer,), list(zip(bounds, counts, strict=True)), self._figures.write_s)
        return family

    def _shares(self) -> Iterator[Metric]:
        """What is not known of a partition is left out."""
        labels = ("consumer", "topic", "partition")
        lags = GaugeMetricFamily(f"{PREFIX}_lag_messages", "Messages that wait to be stored.", labels=labels)
        offsets = GaugeMetricFamily(
            f"{PREFIX}_stored_offset", "Offset of the first message that is not stored.", labels=labels
        )
        for partition, share in self._figures.shares.items():
            values = (self._figures.consumer, self._figures.topic, str(partition))
            if (lag := share.lag) is not None:
                lags.add_metric(values, lag)
            if (stored := share.stored) is not None:
                offsets.add_metric(values, stored)
        yield lags
        yield offsets

    def _outages(self) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}_outage_seconds", "For how long the bus or the sink is away now, else 0.",
            labels=("consumer", "system"),
        )  # fmt: skip
        now_s, outages = self._figures.clock(), self._figures.outages
        for system in SYSTEMS:
            lasts_s = now_s - outages[system].since_s if system in outages else 0.0
            family.add_metric((self._figures.consumer, system), lasts_s)
        return family
