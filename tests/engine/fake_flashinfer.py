"""FlashInfer as its documentation describes it, in plain torch: the wrappers and parameters that we use.

It refuses what the real one refuses (a plan for other rows, another type, a page table on the wrong device) and has the
same parameters under the same names, so what passes here differs from the real one in speed alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch


class _Paged:
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str,
        backend: str,
        use_cuda_graph: bool,
        indptr: torch.Tensor | None = None,
        indices: torch.Tensor | None = None,
        last: torch.Tensor | None = None,
    ) -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"
        assert backend == "fa2"  # "auto" takes fa3 on Hopper
        self.plans = 0
        self.fixed = None
        if use_cuda_graph:
            assert indptr is not None
            assert indices is not None
            assert last is not None
            assert len(indptr) == len(last) + 1
            self.fixed = (len(last), len(indices))

    def _keep(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        pages: torch.Tensor,
        last: torch.Tensor,
        page_size: int,
        shape: tuple[int, int, int],
        causal: bool,
        sm_scale: float | None,
        window_left: int,
        logits_soft_cap: float | None,
        q_data_type: Any,
        kv_data_type: Any,
    ) -> None:
        for host in (queries, keys, last):
            assert (host.dtype, host.device.type) == (torch.int32, "cpu")  # on a device, plan would wait for it
        assert pages.dtype == torch.int32
        assert len(keys) == len(queries) == len(last) + 1
        assert int(keys[-1]) == len(pages)
        assert page_size == 1
        assert (last == 1).all()
        if self.fixed is not None:
            assert len(last) == self.fixed[0]  # the batch size is part of what was captured
            assert len(pages) <= self.fixed[1]
        self.plans += 1
        self.spans = [
            (slice(a, b), pages[c:d].long())
            for a, b, c, d in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True)
        ]
        self.rows, self.shape, self.causal, self.scale = int(queries[-1]), shape, causal, sm_scale
        self.window, self.cap, self.types = window_left, logits_soft_cap or 0.0, (q_data_type, kv_data_type)

    def _run(
        self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor, sink: torch.Tensor | None
    ) -> torch.Tensor:
        k, v = cache
        assert (q.dtype, k.dtype) == (q.dtype, v.dtype) == self.types
        assert q.shape == (self.rows, self.shape[0], self.shape[2])
        assert k.shape[1:] == v.shape[1:] == (1, self.shape[1], self.shape[2])
        assert out.shape == q.shape
        scale = 1 / math.sqrt(self.shape[2]) if self.scale is None else self.scale
        group = self.shape[0] // self.shape[1]
        for rows, pages in self.spans:
            keys, values = (x[:, 0].float()[pages].repeat_interleave(group, 1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q[rows].float(), keys) * scale
            if self.cap > 0:
                scores = self.cap * torch.tanh(scores / self.cap)
            queries, length = scores.shape[1:]
            assert queries <= length
            place = torch.arange(length)[None, :] - torch.arange(length - queries, length)[:, None]
            if self.causal:
                scores = scores.masked_fill(place > 0, -math.inf)
            if self.window >= 0:
                scores = scores.masked_fill(place < -self.window, -math.inf)
            if sink is not None:
                scores = torch.cat((scores, sink[:, None, None].expand(-1, queries, 1)), -1)
            weights = scores.softmax(-1)[..., :length]
            out[rows] = torch.einsum("hqk,khd->qhd", weights, values).to(out.dtype)
        return out


class BatchPrefillWithPagedKVCacheWrapper(_Paged):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: torch.Tensor | None = None,
        paged_kv_indptr_buf: torch.Tensor | None = None,
        paged_kv_indices_buf: torch.Tensor | None = None,
        paged_kv_last_page_len_buf: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        buffers = paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf
        super().__init__(float_workspace_buffer, kv_layout, backend, use_cuda_graph, *buffers)
        assert not use_cuda_graph or qo_indptr_buf is not None

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
    ) -> None:
        shape = num_qo_heads, num_kv_heads, head_dim_qk
        self._keep(
            qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, shape, causal, sm_scale,
            window_left, logits_soft_cap, q_data_type, kv_data_type,
        )  # fmt: skip

    def run(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], *args: Any, out: torch.Tensor
    ) -> torch.Tensor:
        assert not args
        return self._run(q, paged_kv_cache, out, None)


class BatchDecodeWithPagedKVCacheWrapper(_Paged):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert use_tensor_cores
        buffers = paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer
        super().__init__(float_workspace_buffer, kv_layout, backend, use_cuda_graph, *buffers)

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
    ) -> None:
        queries = torch.arange(len(indptr), dtype=torch.int32)
        shape = num_qo_heads, num_kv_heads, head_dim
        self._keep(
            queries, indptr, indices, last_page_len, page_size, shape, False, sm_scale, window_left, logits_soft_cap,
            q_data_type, kv_data_type,
        )  # fmt: skip

    def run(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], *args: Any, out: torch.Tensor
    ) -> torch.Tensor:
        assert not args
        return self._run(q, paged_kv_cache, out, None)


class BatchAttentionWithAttentionSinkWrapper(BatchPrefillWithPagedKVCacheWrapper):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        head_dim_qk: int,
        head_dim_vo: int,
        window_left: int,
        **common: Any,
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout, **common)
        self.compiled = (q_data_type, kv_data_type, head_dim_qk, head_dim_vo, window_left >= 0)

    def run(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], *args: Any, out: torch.Tensor
    ) -> torch.Tensor:
        sink, self.scale = args  # a kernel of its own, which takes its scale from here and not from the plan
        assert sink.dtype == torch.float32
        assert self.compiled == (*self.types, self.shape[2], self.shape[2], self.window >= 0)
        return self._run(q, paged_kv_cache, out, sink)
