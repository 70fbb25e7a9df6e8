"""What the shared prefix cache does for LangChain's users."""

from __future__ import annotations

from typing import Any

from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate
from langchain_radix import ChatRadix

from radixbackend.backend import SharedBackend

EXAMPLES = [
    {"question": f"The review says: the {thing} was {how}. Is that praise?", "answer": answer}
    for thing, how, answer in [
        ("soup", "cold", "no"),
        ("bread", "warm and fresh", "yes"),
        ("waiter", "kind", "yes"),
        ("table", "sticky", "no"),
        ("wine", "worth its price", "yes"),
        ("music", "too loud to talk", "no"),
        ("garden", "a delight in the evening", "yes"),
        ("bill", "wrong twice", "no"),
        ("cake", "the best in town", "yes"),
        ("coffee", "burnt", "no"),
    ]
]


def test_a_few_shot_prompt_over_a_batch(params: dict[str, Any], engine: SharedBackend) -> None:
    """Ten examples, 32 inputs at once, from a cold start: the examples are computed once."""
    example = ChatPromptTemplate.from_messages([("human", "{question}"), ("ai", "{answer}")])
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "You judge reviews of restaurants. Answer with yes or no."),
            FewShotChatMessagePromptTemplate(example_prompt=example, examples=EXAMPLES),
            ("human", "{question}"),
        ]
    )
    chain = prompt | ChatRadix(**params, choice=["yes", "no"])
    engine.flush_cache()
    answers = chain.batch([{"question": f"Dish number {number} was fine. Is that praise?"} for number in range(32)])
    usages = [answer.usage_metadata for answer in answers]
    prompted = sum(usage["input_tokens"] for usage in usages if usage)
    cached = sum(usage["input_token_details"]["cache_read"] for usage in usages if usage)
    print(f"{cached} of {prompted} prompt tokens came from the cache: {cached / prompted:.1%}")
    assert all(answer.text in ("yes", "no") for answer in answers)
    assert cached >= 0.85 * prompted
