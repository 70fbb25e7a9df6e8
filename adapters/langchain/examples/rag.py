"""Questions answered from documents: embeddings and answers by one model, which is loaded once.

python rag.py [model]
"""

from __future__ import annotations

import sys

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_radix import ChatRadix, RadixEmbeddings

FACTS = [
    "Maria Rossi lives in Lisbon.",
    "The bicycle costs 40 euros.",
    "Ostia Museum opens at nine.",
    "The founder of Brightwell Ltd is Tom Becker.",
]

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer using the context:\n{facts}"),
        ("human", "{question}"),
    ]
)


def joined(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def main(model: str) -> list[str]:
    with ChatRadix(model=model, temperature=0, max_tokens=60) as llm, RadixEmbeddings(model=model) as embeddings:
        store = InMemoryVectorStore.from_texts(FACTS, embeddings)
        facts = store.as_retriever(search_kwargs={"k": 3}) | joined
        chain = {"facts": facts, "question": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()
        questions = ["Where does Maria Rossi live?", "How much does the bicycle cost?"]
        answers = chain.batch(questions)
        for question, answer in zip(questions, answers, strict=True):
            print(f"{question}\n  {answer!r}")
        return answers


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "radix-tiny")
