"""One new token of each of many sequences, in a few matrix products instead of one attention call per sequence.

Rules. Sequences whose contexts begin with the same slots form a group: their queries are rows of one product with the
keys they share, which are read once for all of them (Hydragen, arXiv:2402.05099). What each sees beyond is padded to
the group's longest, so a group holds sequences of like length; both parts meet in one softmax. Scores and softmax are
in float32, as in fused kernels. Groups are worked out once per step and kind of layer. Which slots a sequence sees is
decided elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from radixbackend.engine.attention.base import AttentionLayer
from radixbackend.engine.plan import IntArray

SHORTEST_SHARED = 32
"""Shared keys below this are cheaper read once per sequence than kept apart."""

LIKE_LENGTH = 0.7
"""The shortest of a group has at least this share of the longest's own keys, unless all of them are few."""

FEW_KEYS = 64


def pays(count: int, own: int, shared: int) -> bool:
    """Whether ``count`` sequences of at most ``own`` keys beyond ``shared`` ones are faster together than one by one.

    In units of reading one key in a call of its own (measured on x86 in bfloat16, 2 to 16 sequences, 64 to 2,000
    keys, 4 and 2 key heads): a call costs 250 of them, a group 800; gathering a key and widening it, half more.
    """
    return 800 + 1.5 * count * own + 2 * shared < count * (250 + own + shared)


@dataclass(frozen=True, slots=True, eq=False)
class DecodeGroup:
    """Sequences decoded together.

    Attributes:
        rows: ``[n]`` their rows in the packed tensors, ascending.
        shared: slots that all of them begin with, ``[s]``; None if there are none.
        own: ``[n * longest]`` slots beyond, each sequence's filled up with its last one.
        filling: ``[n, 1, longest]`` True where filled up; None where all are equally long.
    """

    rows: torch.Tensor
    shared: torch.Tensor | None
    own: torch.Tensor
    filling: torch.Tensor | None


def make_groups(rows: Sequence[int], seen: Sequence[IntArray], device: torch.device) -> list[DecodeGroup]:
    """Groups for those who are faster together; ``seen[i]`` are the slots that row ``rows[i]`` sees, its own last."""
    groups: list[DecodeGroup] = []
    for members, shared in _kin(seen):
        for alike in _alike(members, [len(seen[i]) - shared for i in members]):
            if pays(len(alike), max(len(seen[i]) for i in alike) - shared, shared):
                groups.append(_group([rows[i] for i in alike], [seen[i] for i in alike], shared, device))
    return groups


def _kin(seen: Sequence[IntArray]) -> Iterator[tuple[list[int], int]]:
    """Sequences that share a beginning and its length; at last those that share none."""
    families: dict[int, list[int]] = defaultdict(list)
    loners: list[int] = []
    for i, slots in enumerate(seen):
        if len(slots) > SHORTEST_SHARED:
            # Not by the first slot: the first few tokens of a chat template are in every prompt.
            families[int(slots[SHORTEST_SHARED - 1])].append(i)
        else:
            loners.append(i)
    for family in families.values():
        shared = min(_common(seen[family[0]], seen[i]) for i in family[1:]) if len(family) > 1 else 0
        if shared >= SHORTEST_SHARED:
            yield family, shared
        else:
            loners += family
    if loners:
        yield sorted(loners), 0


def _common(one: IntArray, other: IntArray) -> int:
    """How many slots two sequences have in common; never all, since the last one is each one's own."""
    length = min(len(one), len(other)) - 1
    different = one[:length] != other[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length


def _alike(members: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Members of like length, each part ascending."""
    order = sorted(range(len(members)), key=lambda i: -lengths[i])
    part: list[int] = []
    for i in order:
        if part and lengths[i] < LIKE_LENGTH * lengths[part[0]] and lengths[part[0]] > FEW_KEYS:
            yield sorted(members[j] for j in part)
            part = []
        part.append(i)
    yield sorted(members[j] for j in part)


def _group(rows: Sequence[int], seen: Sequence[IntArray], shared: int, device: torch.device) -> DecodeGroup:
    lengths = np.array([len(slots) - shared for slots in seen])
    longest = int(lengths.max())
    own = np.empty((len(seen), longest), np.int64)
    for line, slots in zip(own, seen, strict=True):
        line[: len(slots) - shared] = slots[shared:]
        line[len(slots) - shared :] = slots[-1]
    filling = None
    if lengths.min() < longest:
        filling = torch.from_numpy(np.arange(longest) >= lengths[:, None])[:, None].to(device)
    common = seen[0][:shared].astype(np.int64)
    return DecodeGroup(
        rows=torch.tensor(rows, dtype=torch.long, device=device),
        shared=torch.from_numpy(common).to(device) if shared else None,
        own=torch.from_numpy(own.reshape(-1)).to(device),
        filling=filling,
    )


class GroupedDecode:
    """The products; its scratch memory is kept from layer to layer, where new pages would cost more than the work."""

    def __init__(self) -> None:
        self._scratch: dict[str, torch.Tensor] = {}

    def attend(
        self, layer: AttentionLayer, group: DecodeGroup, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """``query [n, heads, dim]`` over the store's ``keys [kv_heads, slots, dim]``: ``[n, heads, value_dim]``."""
        n, heads = len(query), layer.kv_heads
        # [kv_heads, n, group, dim]: the query heads of one key head are rows of one matrix
        packed = (query.float() * layer.scaling).view(n, heads, layer.group, layer.key_dim).transpose(0, 1)
        own_keys = self._gathered("keys", keys, group.own, torch.float32).view(heads * n, -1, layer.key_dim)
        scores = torch.bmm(packed.reshape(heads * n, layer.group, layer.key_dim), own_keys.transpose(1, 2))
        scores = scores.view(heads, n, layer.group, -1)
        if group.filling is not None:
            scores.masked_fill_(group.filling, float("-inf"))
        own_values = self._gathered("values", values, group.own, values.dtype).view(heads * n, -1, layer.value_dim)
        if group.shared is None:
            weights = scores.softmax(-1).to(values.dtype).view(heads * n, layer.group, -1)
            out = torch.bmm(weights, own_values)
        else:
            length = len(group.shared)
            shared_keys = self._gathered("shared keys", keys, group.shared, torch.float32)
            common = torch.bmm(packed.reshape(heads, n * layer.group, layer.key_dim), shared_keys.transpose(1, 2))
            both = torch.cat((common.view(heads, n, layer.group, -1), scores), -1).softmax(-1).to(values.dtype)
            shared_values = self._gathered("shared values", values, group.shared, values.dtype)
            out = torch.bmm(both[..., :length].reshape(heads, n * layer.group, length), shared_values)
            own = torch.bmm(both[..., length:].reshape(heads * n, layer.group, -1), own_values)
            out = (out.float().view(heads * n, layer.group, -1) + own).to(values.dtype)
        return out.view(heads, n, layer.group, -1).transpose(0, 1).contiguous().view(n, layer.heads, layer.value_dim)

    def _gathered(self, name: str, source: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``[heads, len(slots), dim]`` of the store, in scratch memory."""
        shape = (len(source), len(slots), source.shape[2])
        rows = torch.index_select(source, 1, slots, out=self._take(name, shape, source))
        if dtype == source.dtype:
            return rows
        return self._take(f"{name} as {dtype}", shape, source, dtype).copy_(rows)

    def _take(
        self, name: str, shape: tuple[int, int, int], like: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        size, dtype = shape[0] * shape[1] * shape[2], dtype or like.dtype
        scratch = self._scratch.get(name)
        if scratch is None or len(scratch) < size or scratch.dtype != dtype:
            scratch = self._scratch[name] = torch.empty(size + size // 4, dtype=dtype, device=like.device)
        return scratch[:size].view(shape)

    def clear(self) -> None:
        """Give the scratch memory back."""
        self._scratch.clear()
