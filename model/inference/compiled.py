"""One decoding step, plain and compiled, and the KV cache that it writes to."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..cache import KVCache
from ..device import Compute
from ..gpt import GPT

WINDOW_STEP = 64  # on a CPU, a compiled step attends to a multiple of this many cache slots
Step = Callable[[GPT, KVCache, Tensor, Compute], Tensor]
_compiled: WeakKeyDictionary[GPT, dict[tuple, Step]] = WeakKeyDictionary()


def decode_step(model: GPT, cache: KVCache, ids: Tensor, compute: Compute) -> Tensor:
    """The plain form: ids (B, T) -> logits (B, T, V) in float32; appends the tokens to the cache."""
    with compute.autocast():
        return model(ids, cache).float()


def compiled_step(model: GPT, rows: int, capacity: int, compute: Compute) -> Step:
    """decode_step for one new token per row, compiled: a CUDA graph on a GPU, one fused graph on a CPU.

    Before each call torch.compile evaluates hundreds of guards: checks that its assumptions about the inputs (shapes,
    dtypes, Python values) still hold. They take longer than a tenth of a small model's step. Here they cannot fail and
    are skipped: a step is reused only for the same model and an equal key, and the two hold all that the graph
    depends on. Only the cache's window changes, and its size is a dynamic dimension.
    """
    key = (rows, capacity, compute, model.training, type(model.lm_head))
    steps = _compiled.setdefault(model, {})
    if key not in steps:
        options: dict = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "size_asserts": False}
        if compute.device.type == "cuda":
            options["triton.cudagraphs"] = True
        # torch.compile caches graphs by code object and, without guards, takes the first: each key needs its own.
        function = FunctionType(decode_step.__code__.replace(), decode_step.__globals__)
        step = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        cache = make_cache(model, rows, capacity, compute)
        if compute.device.type == "cpu":
            cache.set_window(WINDOW_STEP)
            torch._dynamo.mark_dynamic(cache.slots, 0)
        with torch.no_grad():
            step(model, cache, torch.zeros(rows, 1, dtype=torch.int64, device=compute.device), compute)
        steps[key] = step
    return steps[key]


def make_cache(model: GPT, rows: int, capacity: int, compute: Compute) -> KVCache:
    """A cache in compute's dtype; in float32 for eager decoding on a CPU, whose attention is far faster that way."""
    dtype = torch.float32 if compute.device.type == "cpu" and not compute.compile else compute.dtype
    cache = KVCache(model.config, rows, capacity=capacity, device=compute.device, dtype=dtype)
    if compute.device.type == "cuda" and compute.compile:
        for tensor in (*cache.keys, *cache.values, cache.length):  # CUDA graphs need static addresses to mutate inputs
            torch._dynamo.mark_static_address(tensor)
    return cache
