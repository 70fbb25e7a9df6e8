"""Whatever the class: an object of it, from a model whose words mean nothing, or a refusal before it says any.

RADIX_CLASSES sets how many classes are drawn; RADIX_SEED draws others.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, seed, settings
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.radix import Radix
from pydantic import BaseModel

from adapters.llamaindex.tests.classes import classes
from adapters.llamaindex.tests.test_partial import grows
from radixbackend.errors import ConstraintError

COUNT = int(os.environ.get("RADIX_CLASSES", "60"))
PROFILE = settings(settings.get_profile("llamaindex"), derandomize="RADIX_SEED" not in os.environ)
PROMPT = PromptTemplate("Make one of these.")


@pytest.mark.timeout(20 + 10 * COUNT)
def test_random_classes(llm: Radix) -> None:
    outcomes: Counter[str] = Counter()

    @seed(int(os.environ.get("RADIX_SEED", "0")))
    @settings(PROFILE, max_examples=COUNT)
    @given(classes())
    def check(output_cls: type[BaseModel]) -> None:
        before = llm.stats().generated_tokens
        asked: dict[str, Any] = {"seed": sum(outcomes.values()), "max_tokens": 1500}
        try:
            made = llm.structured_predict(output_cls, PROMPT, llm_kwargs=asked)
        except ConstraintError:
            outcomes["refused"] += 1
            assert llm.stats().generated_tokens == before
            return
        assert isinstance(made, output_cls)
        *partials, last = llm.stream_structured_predict(output_cls, PROMPT, llm_kwargs=asked)
        assert last == made
        seen = [partial.model_dump(exclude_unset=True) for partial in partials]
        assert all(grows(a, b) for a, b in itertools.pairwise(seen))
        assert len(seen) >= len(made.model_fields_set)
        outcomes["made"] += 1

    check()
    print(dict(outcomes))
    assert outcomes["made"] >= 0.9 * sum(outcomes.values())
