"""A plugin that turns step and request records into Prometheus metrics.

    metrics = PrometheusMetrics(model_name="llama")
    engine = Engine("path", plugins=[metrics])
    metrics.render()

Rules. A step costs one assignment: its record is kept, and read when someone scrapes. What is counted per request is
counted when the request ends. It needs the extra ``metrics``, and knows no HTTP: serve `render` as you like.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from radixbackend.errors import MissingDependencyError
from radixbackend.hookspecs import hookimpl
from radixbackend.types import EngineStats, RequestRecord, StepRecord

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram, Metric

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Buckets of every histogram: a decode step of a small model up to the slowest answer."""


class PrometheusMetrics:
    """Metrics of one engine, named ``radix:…`` and labelled with ``model_name``.

    Args:
        registry: where to register; None takes a fresh one. A registry takes the metrics of one engine.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, model_name: str) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ImportError as fault:
            raise MissingDependencyError(
                "metrics need prometheus-client: pip install 'radixbackend[metrics]'"
            ) from fault
        self.registry = registry if registry is not None else CollectorRegistry()
        self._model = model_name
        self._stats = EngineStats()

        def histogram(name: str, text: str) -> Histogram:
            metric = Histogram(f"radix:{name}", text, ["model_name"], buckets=SECONDS, registry=self.registry)
            return metric.labels(model_name)

        self._first_token = histogram("time_to_first_token_seconds", "From submission to the first token.")
        self._inter_token = histogram("inter_token_latency_seconds", "Mean time per further token of a request.")
        self._latency = histogram("e2e_request_latency_seconds", "From submission to the last token.")
        self._queue_time = histogram("queue_time_seconds", "From submission to admission into the batch.")
        self._requests = Counter(
            "radix:requests", "Ended requests by outcome.", ["model_name", "outcome"], registry=self.registry
        )
        for outcome in ("stop", "length", "aborted"):
            self._requests.labels(model_name, outcome)
        self.registry.register(self)

    @hookimpl
    def radix_step_finished(self, record: StepRecord) -> None:
        self._stats = record.stats

    @hookimpl
    def radix_request_finished(self, record: RequestRecord) -> None:
        self._stats = record.stats  # an abort may be followed by no step
        self._requests.labels(self._model, record.outcome).inc()
        if record.admitted is not None:
            self._queue_time.observe(record.admitted - record.submitted)
        if record.first_token is not None:
            self._first_token.observe(record.first_token - record.submitted)
            self._latency.observe(record.finished - record.submitted)
            further = record.usage.completion_tokens - 1
            if further > 0:
                self._inter_token.observe((record.finished - record.first_token) / further)

    def collect(self) -> Iterable[Metric]:
        """What the engine's own counters said after the last step (called by prometheus-client on a scrape)."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        s = self._stats
        gauges = (
            ("num_running_reqs", "Sequences in the batch.", s.running),
            ("num_queue_reqs", "Sequences waiting.", s.waiting),
            ("kv_available_tokens", "KV slots that hold nothing.", s.slots_free),
            ("kv_evictable_tokens", "KV slots in the radix tree that may be evicted.", s.slots_cached),
            ("kv_used_tokens", "KV slots in use or pinned.", s.slots_held),
            ("token_usage", "Share of KV slots in use or pinned.", s.slots_held / max(1, s.slots_total)),
            ("cache_hit_rate", "Share of all prompt tokens so far that came from the cache.", s.cache_hit_rate),
        )
        counters = (
            ("prompt_tokens", "Prompt tokens of admitted requests.", s.prompt_tokens),
            ("cached_tokens", "Prompt tokens that came from the cache.", s.cached_tokens),
            ("generation_tokens", "Generated tokens.", s.generated_tokens),
            ("evicted_tokens", "Tokens evicted from the radix tree.", s.evicted_tokens),
            ("retracted_requests", "Running sequences sent back to wait.", s.retractions),
            ("steps", "Engine steps.", s.steps),
            ("grammar_compile_seconds", "Time spent compiling grammars.", s.grammar_seconds),
        )
        for family, values in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, text, value in values:
                metric = family(f"radix:{name}", text, labels=["model_name"])
                metric.add_metric([self._model], value)
                yield metric

    def render(self) -> str:
        """Everything in the registry, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()
