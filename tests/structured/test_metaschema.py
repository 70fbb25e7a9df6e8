"""Our table of keyword values against the published metaschemas."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from radixbackend.structured.metaschema import applicators, first_fault, values

VALIDATORS = {
    4: jsonschema.Draft4Validator,
    6: jsonschema.Draft6Validator,
    7: jsonschema.Draft7Validator,
    2019: jsonschema.Draft201909Validator,
    2020: jsonschema.Draft202012Validator,
}
VALUES: list[Any] = [
    *(0, 1, -1, 1.0, 1.5, True, False, None, "", "string", "a", "#x"),
    *([], ["a"], ["a", "a"], [1], [{}], [True], [{}, 1], ["null", "string"], ["string", "string"]),
    *({}, {"a": {}}, {"a": []}, {"a": ["b"]}, {"a": ["b", "b"]}, {"a": True}, {"a": 1}),
]
MORE_TOLERANT = {
    (4, "enum"),  # an empty one is refused as unsatisfiable, repeated values do no harm
    *((4, keyword) for keyword in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")),
    *((draft, keyword) for draft in (2019, 2020) for keyword in ("$id", "$anchor", "$dynamicAnchor")),
    *((2020, keyword) for keyword in ("$recursiveRef", "$recursiveAnchor")),
}
"""Draft and keyword where we take values that the metaschema refuses: harmless ones, such as 1.0 for 1."""


@pytest.mark.parametrize("draft", VALIDATORS)
def test_every_keyword_takes_what_its_metaschema_lets_it_take(draft: int) -> None:
    metaschema = VALIDATORS[draft](VALIDATORS[draft].META_SCHEMA)
    keywords = {keyword for known in (4, 6, 7, 2019, 2020) for keyword in (*values(known), *applicators(known))}
    for keyword in sorted(keywords):
        for value in VALUES:
            for schema in ({keyword: value}, {"properties": {"p": {keyword: value}}}):
                ours, theirs = first_fault(schema, draft) is None, metaschema.is_valid(schema)
                assert ours == theirs or (ours and (draft, keyword) in MORE_TOLERANT), (draft, schema)


def test_the_fault_is_at_the_keyword() -> None:
    schema = {"properties": {"a/b": {"items": {"minLength": "3"}}}}
    assert first_fault(schema, 2020) == (
        "/properties/a~1b/items/minLength",
        "minLength takes a whole number from 0, not '3'",
    )
    assert first_fault({"minimum": 1, "exclusiveMinimum": True}, 4) is None
    assert first_fault({"exclusiveMinimum": True}, 4) == (
        "/exclusiveMinimum",
        "exclusiveMinimum needs minimum beside it",
    )
    assert first_fault({"minimum": 1, "exclusiveMinimum": True}, 2020) is not None
