"""Opening, sharing, copying, saving and closing: who holds the model, and when it is given back."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy_radix import RadixAdapter, RadixLM

from radixbackend import get_backend, hookimpl
from radixbackend.errors import ConfigError, EngineClosedError, ModelNotFoundError

OPTIONS: dict[str, Any] = {"kv_cache_tokens": 4096, "max_tokens": 4, "cache": False}


def engine_behind(lm: RadixLM) -> Any:
    """What all shares have in common; it is closed with the last of them."""
    return lm.engine.chat._share.backend


def is_closed(engine: Any) -> bool:
    try:
        engine.stats()
    except EngineClosedError:
        return True
    return False


def test_lms_over_one_model_share_one_engine(checkpoint: Path) -> None:
    with RadixLM(checkpoint, **OPTIONS) as first, RadixLM(checkpoint, temperature=0.5, **OPTIONS) as second:
        assert engine_behind(first) is engine_behind(second)
        first("Count to three.")
        second("Count to three.")
        assert second.history[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_close_gives_the_share_back_and_the_last_one_the_engine(checkpoint: Path) -> None:
    first, second = RadixLM(checkpoint, **OPTIONS), RadixLM(checkpoint, **OPTIONS)
    engine = engine_behind(first)
    first.close()
    first.close()
    assert second("hi")
    with pytest.raises(dspy.LMConfigurationError, match="closed"):
        first("hi")
    asyncio.run(second.aclose())
    assert is_closed(engine)


def test_a_dropped_lm_gives_its_share_back(checkpoint: Path) -> None:
    lm = RadixLM(checkpoint, **OPTIONS)
    engine = engine_behind(lm)
    program = dspy.Predict("question -> answer")
    program.lm = lm.copy(temperature=0.1)
    del lm
    gc.collect()
    assert not is_closed(engine)  # the program's copy lives
    del program
    gc.collect()
    assert is_closed(engine)


def test_an_lm_that_could_not_be_made_leaves_nothing_behind(checkpoint: Path) -> None:
    made: list[Any] = []

    class Watch:
        @hookimpl
        def radix_load_model(self, spec: Any) -> None:
            made.append(spec)

    with pytest.raises(ConfigError, match="kv_cache_tokens"):
        RadixLM(checkpoint, kv_cache_tokens=-1)
    with pytest.raises(ModelNotFoundError):
        RadixLM(checkpoint / "nowhere")
    watch = Watch()
    with pytest.raises(TypeError, match="CacheConfig"):
        RadixLM(checkpoint, prompt_cache="stable", plugins=(watch,), **OPTIONS)
    assert len(made) == 1
    gc.collect()
    with get_backend(checkpoint, plugins=(watch,), kv_cache_tokens=4096):
        assert len(made) == 2, "the first engine is still open"


def test_text_completion_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="model_type"):
        RadixLM(checkpoint, model_type="text", **OPTIONS)


# -- copies --------------------------------------------------------------------------------------------------------


def test_deep_copies_of_programs_use_the_same_engine(lm: RadixLM) -> None:
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(lm)
    for copied in (program.deepcopy(), copy.deepcopy(program)):
        assert copied.predict.lm.engine is lm.engine
        assert copied.predict.lm.history is not lm.history
    assert copy.deepcopy(lm).engine is lm.engine
    assert copy.deepcopy(lm)("hi")


def test_pickles_open_a_share_of_their_own(checkpoint: Path) -> None:
    with RadixLM(checkpoint, **OPTIONS) as lm:
        restored = pickle.loads(pickle.dumps(lm))
        assert engine_behind(restored) is engine_behind(lm)
        assert restored.engine is not lm.engine
        assert asyncio.run(restored.acall("hi"))
        restored.close()
        assert lm("hi")


# -- on disk -------------------------------------------------------------------------------------------------------


def test_a_saved_program_opens_its_model_again(checkpoint: Path, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    with RadixLM(checkpoint, temperature=0.25, min_p=0.1, **OPTIONS) as lm:
        program.lm = lm
        program.save(tmp_path / "program.json")
        state = json.loads((tmp_path / "program.json").read_text())["lm"]
        assert state["engine"]["state"]["kv_cache_tokens"] == 4096
        assert "async_engine" not in state
        loaded = dspy.Predict("question -> answer")
        with pytest.raises(ValueError, match="allow_unsafe_lm_state"):
            loaded.load(tmp_path / "program.json")
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
        assert type(loaded.lm) is RadixLM
        assert loaded.lm.model == lm.model
        assert loaded.lm.kwargs == lm.kwargs
        assert engine_behind(loaded.lm) is engine_behind(lm)
        assert loaded.lm("hi")
        assert asyncio.run(loaded.lm.acall("hi"))
        loaded.lm.close()


def test_a_saved_program_loads_in_another_process(checkpoint: Path, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    with RadixLM(checkpoint, **OPTIONS) as lm:
        program.lm = lm
        program.save(tmp_path / "program.json")
        script = (
            "import dspy, sys\n"
            "program = dspy.Predict('question -> answer')\n"
            "program.load(sys.argv[1], allow_unsafe_lm_state=True)\n"
            "print(program.lm.model, len(program.lm('hi')))\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "program.json")],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "DSPY_CACHEDIR": str(tmp_path / "cache")},
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == [lm.model, "1"]


def test_whole_programs_can_be_saved(checkpoint: Path, tmp_path: Path) -> None:
    """With cloudpickle, the LM and its adapter inside."""
    program = dspy.Predict("question -> answer: int")
    with RadixLM(checkpoint, **{**OPTIONS, "max_tokens": 32}) as lm:
        program.lm = lm
        program.save(tmp_path / "program", save_program=True)
        loaded = dspy.load(tmp_path / "program", allow_pickle=True)
        with dspy.context(adapter=pickle.loads(pickle.dumps(RadixAdapter()))):
            assert isinstance(loaded(question="How many?").answer, int)
        loaded.lm.close()


def test_secrets_and_plugins_are_not_saved(checkpoint: Path) -> None:
    class Plugin:
        @hookimpl
        def radix_step_finished(self, record: Any) -> None:
            pass

    with RadixLM(checkpoint, plugins=(Plugin(),), **OPTIONS) as lm, pytest.raises(TypeError, match="plugins="):
        lm.dump_state()


def test_closed_and_collected_engines_leave_no_memory(checkpoint: Path) -> None:
    lm = RadixLM(checkpoint, **OPTIONS)
    gone = weakref.ref(engine_behind(lm))
    lm.close()
    del lm
    gc.collect()
    assert gone() is None
