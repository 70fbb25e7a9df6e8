"""The C kernels: where they come from, what happens without a compiler, and that a row is nobody else's business."""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from radixbackend.builtin_plugin import radix_make_attention
from radixbackend.engine.attention import native
from radixbackend.engine.attention.base import AttentionLayer
from radixbackend.engine.native import build
from radixbackend.errors import ConfigError, MissingDependencyError
from tests.engine.test_attention import LAYERS, PLAIN, Bench, native_attention

kernels = pytest.mark.skipif(not native_attention(), reason="no gcc here")

LONG = {
    name: replace(layer, dtype=dtype, key_dim=80, value_dim=48, heads=6, **more)
    for name, layer, dtype, more in (
        ("plain", PLAIN, torch.float32, {}),
        ("bfloat16", PLAIN, torch.bfloat16, {}),
        ("window", PLAIN, torch.float32, {"window": 300}),
        ("chunk", PLAIN, torch.float32, {"chunk": 256}),
        ("softcap", LAYERS["softcap"], torch.bfloat16, {}),
        ("sinks", LAYERS["sinks"], torch.float32, {}),
    )
}
"""Groups of three heads, odd numbers of vectors."""


def long_bench(layer: AttentionLayer) -> Bench:
    bench = Bench(native.NativeAttention(), layer, [list(range(700)), list(range(700, 1213)), list(range(1300, 1303))])
    bench.fill()
    return bench


def check(bench: Bench, runs: list[tuple[int, int, int]], **close: float) -> None:
    """Against the sums spelled out in float32."""
    exact = Bench(native.NativeAttention(), replace(bench.layer, dtype=torch.float32), bench.slots)
    exact.keys, exact.values = ([x.float() for x in held] for held in (bench.keys, bench.values))
    exact.queries = [x.float() for x in bench.queries]
    exact.sinks = None if bench.sinks is None else bench.sinks.float()
    for out, (sequence, start, end) in zip(bench.step(runs), runs, strict=True):
        plain = torch.stack([exact.expected(sequence, position) for position in range(start, end)])
        torch.testing.assert_close(out.float(), plain, **close)


DECODES = [(0, 699, 700), (1, 509, 513), (2, 2, 3)]


@kernels
@pytest.mark.parametrize("layer", LONG.values(), ids=LONG)
def test_contexts_of_several_runs(layer: AttentionLayer) -> None:
    bench = long_bench(layer)
    close = {"atol": 1e-5, "rtol": 1e-4} if layer.dtype == torch.float32 else {"atol": 2e-3, "rtol": 1e-2}
    check(bench, DECODES, **close)


@kernels
@pytest.mark.parametrize("layer", LONG.values(), ids=LONG)
def test_a_row_has_the_same_bits_alone_in_company_and_on_any_number_of_threads(layer: AttentionLayer) -> None:
    bench = long_bench(layer)
    together = bench.step(DECODES)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            alone = [bench.step([run])[0] for run in DECODES]
            for one, other in zip(together, alone, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


@kernels
def test_one_sequence_that_is_not_finite_harms_no_other() -> None:
    bench = long_bench(LONG["plain"])
    good = bench.step(DECODES)
    bench.queries[0][699] = float("nan")
    bench.store.values[0][bench.slots[2][0]] = float("inf")
    ill = bench.step(DECODES)
    assert torch.equal(ill[1], good[1])
    assert ill[0].isnan().all()
    assert not ill[2].isfinite().all()


PROMPTS = {
    name: replace(PLAIN, **{"dtype": torch.bfloat16, "scaling": 0.1, **more})
    for name, more in (
        ("plain", {"key_dim": 64, "value_dim": 64}),
        ("heads_of_two_sizes", {"key_dim": 128, "value_dim": 64, "heads": 6}),
        ("one_head_each", {"key_dim": 64, "value_dim": 128, "kv_heads": 4}),
        ("many_heads_each", {"key_dim": 64, "value_dim": 64, "heads": 14}),
        ("window", {"key_dim": 64, "value_dim": 64, "window": 70}),
        ("chunk", {"key_dim": 64, "value_dim": 64, "chunk": 48}),
        ("sinks", {"key_dim": 64, "value_dim": 64, "sinks": True}),
        ("float32", {"key_dim": 64, "value_dim": 64, "dtype": torch.float32}),
        ("float32_odd_heads", {"key_dim": 48, "value_dim": 16, "dtype": torch.float32, "window": 33, "sinks": True}),
    )
}
"""Not all of them are served by every processor."""

WHOLE = [(0, 0, 210), (1, 30, 95), (2, 2, 3), (1, 0, 6)]
"""A prompt, a chunk behind others, a decode, and a chunk of another sequence's beginning."""


def prompt_bench(layer: AttentionLayer) -> Bench:
    """Like `Bench`, its slots scattered and filled; skips where the kernel leaves prompts to torch."""
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1)).tolist()
    kernel = native.NativeAttention()
    bench = Bench(kernel, layer, [order[:210], order[210:310], order[310:313]])
    bench.fill()
    if not kernel._takes_prompts:
        pytest.skip("on this processor torch has these prompts")
    return bench


@kernels
@pytest.mark.parametrize("layer", PROMPTS.values(), ids=PROMPTS)
def test_prompts(layer: AttentionLayer) -> None:
    bench = prompt_bench(layer)
    close = {"atol": 1e-5, "rtol": 1e-4} if layer.dtype == torch.float32 else {"atol": 8e-3, "rtol": 1e-2}
    check(bench, WHOLE, **close)


@kernels
@pytest.mark.parametrize("layer", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_in_any_chunks_and_company_has_the_same_bits(layer: AttentionLayer) -> None:
    bench = prompt_bench(layer)
    whole = bench.step(WHOLE)[0]
    for ends in ([0, 90, 210], [0, 7, 100, 163, 210]):
        parts = [bench.step([(1, 0, 20), (0, a, b)])[1] for a, b in itertools.pairwise(ends)]
        assert torch.equal(torch.cat(parts), whole)


@kernels
def test_a_prompt_is_stored_as_it_is_attended() -> None:
    bench = prompt_bench(PROMPTS["plain"])
    for held in (bench.store.keys[0], bench.store.values[0]):
        held.fill_(float("nan"))
    bench.step([(0, 0, 210), (2, 0, 3)])
    assert torch.equal(bench.store.keys[0][bench.slots[0]], bench.keys[0])
    assert torch.equal(bench.store.values[0][bench.slots[2]], bench.values[2])
    assert bench.store.keys[0][bench.slots[1]].isnan().all()


@kernels
def test_a_prompt_that_is_not_finite_harms_no_other() -> None:
    bench = prompt_bench(PROMPTS["plain"])
    good = bench.step(WHOLE)
    bench.queries[0][100] = float("nan")
    ill = bench.step(WHOLE)
    assert ill[0].isnan().any(-1).any(-1).nonzero().flatten().tolist() == [100]
    for one, other in zip(ill[1:], good[1:], strict=True):
        assert torch.equal(one, other)


@kernels
def test_what_the_kernel_cannot_serve_is_torchs() -> None:
    for layer in (replace(PLAIN, dtype=torch.float16), replace(PLAIN, key_dim=24)):
        assert native.NativeAttention().refuses(layer)
        kernel = radix_make_attention("auto", "cpu")
        assert kernel is not None
        assert kernel.refuses(layer) is None
        kernel.bind((layer,), Bench(kernel, layer, [[1]]).store)
        assert kernel.name == "torch"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_takes_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kernel = radix_make_attention("auto", "cpu")
    assert kernel is not None
    assert kernel.name == "torch"
    assert "apt install gcc" in caplog.text
    with pytest.raises(MissingDependencyError, match="apt install gcc"):
        radix_make_attention("native", "cpu")


def test_native_is_for_the_cpu() -> None:
    with pytest.raises(ConfigError, match="runs on a CPU"):
        radix_make_attention("native", "cuda")


@kernels
def test_compiled_once_then_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_kernels("decode_attention")
    (library,) = (tmp_path / "radixbackend").iterdir()
    made = library.stat().st_mtime_ns
    build.load_kernels("decode_attention")
    assert library.stat().st_mtime_ns == made
    assert list((tmp_path / "radixbackend").iterdir()) == [library]


@kernels
def test_a_failed_compilation_says_what_the_compiler_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-no-such-flag",))
    with pytest.raises(MissingDependencyError, match="no-such-flag"):
        build.load_kernels("decode_attention")
    assert list((tmp_path / "radixbackend").iterdir()) == []


@kernels
def test_a_cache_that_cannot_be_written_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    with pytest.raises(MissingDependencyError, match="could not be built"):
        build.load_kernels("decode_attention")


@kernels
def test_a_user_without_a_home_does_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(MissingDependencyError, match="home directory"):
        build.load_kernels("decode_attention")
    kernel = radix_make_attention("auto", "cpu")
    assert kernel is not None
    assert kernel.name == "torch"


def test_another_compiler_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess((), 0, stdout="clang version 19", stderr="")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", version)
    with pytest.raises(MissingDependencyError, match="need gcc"):
        build.find_compiler()
