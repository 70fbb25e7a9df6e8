from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from radixbackend.errors import MissingDependencyError
from radixbackend.metrics import PrometheusMetrics
from radixbackend.plugins import Plugins
from radixbackend.types import EngineStats, RequestId, RequestRecord, StepRecord, Usage

STATS = EngineStats(
    steps=3,
    prompt_tokens=100,
    cached_tokens=60,
    generated_tokens=30,
    evicted_tokens=7,
    retractions=2,
    running=4,
    waiting=5,
    slots_total=1000,
    slots_free=600,
    slots_cached=150,
    slots_held=250,
    grammar_seconds=1.5,
)
STEP = StepRecord(3, 0.0, 0.0, 0.0, 0.0, 1, 1, 0, 0, STATS)
REQUEST = RequestRecord(
    RequestId(1), "stop", Usage(prompt_tokens=9, completion_tokens=11), 0, 10.0, 10.2, 10.5, 12.5, 0, STATS
)


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics(model_name="tiny")


def value(metrics: PrometheusMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"radix:{name}", {"model_name": "tiny", **labels})


def test_counters_and_gauges_are_those_of_the_last_step(metrics: PrometheusMetrics) -> None:
    Plugins([metrics], discover=False).step_finished(STEP)
    expected = {
        "num_running_reqs": 4,
        "num_queue_reqs": 5,
        "token_usage": 0.25,
        "cache_hit_rate": 0.6,
        "kv_available_tokens": 600,
        "kv_evictable_tokens": 150,
        "kv_used_tokens": 250,
        "prompt_tokens_total": 100,
        "cached_tokens_total": 60,
        "generation_tokens_total": 30,
        "evicted_tokens_total": 7,
        "retracted_requests_total": 2,
        "steps_total": 3,
        "grammar_compile_seconds_total": 1.5,
    }
    assert {name: value(metrics, name) for name in expected} == expected
    metrics.radix_step_finished(replace(STEP, stats=replace(STATS, prompt_tokens=101)))
    assert value(metrics, "prompt_tokens_total") == 101


def test_a_request_is_timed(metrics: PrometheusMetrics) -> None:
    Plugins([metrics], discover=False).request_finished(REQUEST)
    sums = {
        "queue_time_seconds": 0.2,
        "time_to_first_token_seconds": 0.5,
        "inter_token_latency_seconds": 0.2,
        "e2e_request_latency_seconds": 2.5,
    }
    for name, seconds in sums.items():
        assert value(metrics, f"{name}_sum") == pytest.approx(seconds)
        assert value(metrics, f"{name}_count") == 1
    assert value(metrics, "requests_total", outcome="stop") == 1
    assert value(metrics, "requests_total", outcome="aborted") == 0


def test_a_request_that_never_ran_is_counted_and_not_timed(metrics: PrometheusMetrics) -> None:
    metrics.radix_request_finished(replace(REQUEST, outcome="aborted", admitted=None, first_token=None, usage=Usage()))
    assert value(metrics, "requests_total", outcome="aborted") == 1
    assert value(metrics, "queue_time_seconds_count") == 0
    assert value(metrics, "e2e_request_latency_seconds_count") == 0


def test_one_token_has_no_time_between(metrics: PrometheusMetrics) -> None:
    metrics.radix_request_finished(replace(REQUEST, usage=Usage(completion_tokens=1)))
    assert value(metrics, "inter_token_latency_seconds_count") == 0
    assert value(metrics, "time_to_first_token_seconds_count") == 1


def test_text_can_be_parsed(metrics: PrometheusMetrics) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    metrics.radix_step_finished(STEP)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render())}
    assert families["radix:cached_tokens"].type == "counter"
    assert families["radix:kv_used_tokens"].type == "gauge"
    assert families["radix:queue_time_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_two_engines_do_not_meet() -> None:
    one, other = (PrometheusMetrics(model_name="tiny") for _ in range(2))
    one.radix_step_finished(STEP)
    assert value(other, "steps_total") == 0


def test_registry_of_the_caller() -> None:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    assert PrometheusMetrics(registry, model_name="tiny").registry is registry


def test_missing_package_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match=r"radixbackend\[metrics\]"):
        PrometheusMetrics(model_name="tiny")
