"""Decoder: a model and its cache, fed token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..cache import KVCache
from ..device import Compute
from ..gpt import GPT

BLOCK = 64  # a compiled step on a CPU looks at a multiple of so many slots
Step = Callable[[GPT, KVCache, Tensor, Compute], Tensor]
_compiled: WeakKeyDictionary[GPT, dict[tuple, Step]] = WeakKeyDictionary()


class Decoder:
    """Reads texts, then continues each of its rows; gives the logits of the next token, in float32.

    Room is made once: a row may hold `capacity` tokens, at most the model's context. `length` (B,) counts those that a
    row holds; the caller may set it back, which takes tokens back. With compute.compile the first decoder of its kind
    on a model takes its time to be made.
    """

    def __init__(self, model: GPT, *, rows: int, capacity: int, compute: Compute) -> None:
        self.model, self.compute = model, compute
        self.capacity = min(capacity, model.config.context)
        # On a CPU only one row gains: the products of several are larger, and oneDNN's own are then the fastest.
        self.compiled = compute.compile and (rows == 1 or compute.device.type == "cuda")
        # Powers of two, of which a process meets few: each is compiled anew.
        room = max(2 * BLOCK, 1 << (self.capacity - 1).bit_length()) if self.compiled else self.capacity
        self.cache = make_cache(model, rows, room, compute)
        self._step = compiled_step(model, rows, room, compute) if self.compiled else step

    @property
    def length(self) -> Tensor:
        return self.cache.length

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Forgets all, reads a text into each row; the logits (B, V) after each text.

        Equal texts are computed once, and so is a beginning that all share.
        """
        unique = list(dict.fromkeys(map(tuple, texts)))
        shared = shared_beginning(unique) if len(unique) > 1 else 0
        part = self.cache.view_rows(len(unique))
        part.length.zero_()
        with self.compute.autocast():
            if shared:
                self.model.hidden(self._padded([unique[0][:shared]]), part.view_rows(1))
                part.gather_rows([0] * len(unique))
            h = self.model.hidden(self._padded([text[shared:] for text in unique]), part)
            lengths = torch.tensor([len(text) for text in unique], device=self.compute.device)
            part.length.copy_(lengths)  # forget the padding; the next tokens overwrite it
            logits = self.model.head(h[torch.arange(len(unique), device=lengths.device), lengths - shared - 1]).float()
        sources = [unique.index(tuple(text)) for text in texts]
        if len(unique) < len(texts):
            self.cache.gather_rows(sources)
            logits = logits[sources]
        return logits

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """One more token in each row: ids (B,) -> logits (B, V). A row that is full loses its last token first."""
        if self.compiled and self.compute.device.type == "cpu":
            if (held := int(self.length)) >= self.capacity:
                self.length.fill_(held := self.capacity - 1)
            self.cache.set_window((held // BLOCK + 1) * BLOCK)
            return self._step(self.model, self.cache, ids[:, None], self.compute)[:, 0]
        self.length.clamp_(max=self.capacity - 1)
        if not self.compiled:
            return step(self.model, self.cache, ids[:, None], self.compute)[:, 0]
        self.cache.set_window(self.cache.capacity)
        logits = self._step(self.model, self.cache, ids[:, None].contiguous(), self.compute)[:, 0]
        return logits.clone()  # a captured graph writes its next logits over these

    @torch.no_grad()
    def extend(self, ids: Tensor) -> Tensor:
        """Several more tokens in each row: ids (B, T) -> the logits after each, (B, T, V)."""
        return step(self.model, self.cache, ids, self.compute)

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows alone, which are then numbered anew. Not for a compiled decoder on a GPU."""
        others = [0] * (len(self.cache.length) - len(rows))
        self.cache.gather_rows([*rows, *others])
        self.cache = self.cache.view_rows(len(rows))

    def _padded(self, texts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, texts))
        return torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self.compute.device)


def shared_beginning(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with, but for each text's last, whose logits are wanted."""
    shortest = min(map(len, texts)) - 1
    return next((n for n in range(shortest) if len({text[n] for text in texts}) > 1), shortest)


def step(model: GPT, cache: KVCache, ids: Tensor, compute: Compute) -> Tensor:
    with compute.autocast():  # entered anew each time: what runs between two calls is the caller's
        return model(ids, cache).float()


def make_cache(model: GPT, rows: int, capacity: int, compute: Compute) -> KVCache:
    """Keys and values in compute's dtype, but for a CPU's own attention kernel, which is far faster in float32."""
    dtype = torch.float32 if compute.device.type == "cpu" and not compute.compile else compute.dtype
    cache = KVCache(model.config, rows, capacity=capacity, device=compute.device, dtype=dtype)
    if compute.device.type == "cuda" and compute.compile:
        for tensor in (*cache.keys, *cache.values, cache.length):  # CUDA graphs need static addresses to mutate inputs
            torch._dynamo.mark_static_address(tensor)
    return cache


def compiled_step(model: GPT, rows: int, capacity: int, compute: Compute) -> Step:
    """`step` for one new token per row, compiled: captured as a CUDA graph on a GPU, fused into one graph on a CPU.

    At every call torch.compile checks some hundreds of guards, which takes longer than a tenth of a small model's step.
    Here the key holds everything the graph depends on, so the guards are skipped. torch.compile files its graphs by
    code object; each key has a copy of its own, or a graph could be called for another model.
    """
    key = (rows, capacity, compute, model.training, type(model.lm_head))
    known = _compiled.setdefault(model, {})
    if key not in known:
        options: dict = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        if compute.device.type == "cuda":
            options |= {"triton.cudagraphs": True, "size_asserts": False}
        own = FunctionType(step.__code__.replace(), step.__globals__)
        compiled = torch.compile(own, fullgraph=True, dynamic=False, options=options)
        cache = make_cache(model, rows, capacity, compute)
        if compute.device.type == "cpu":
            cache.set_window(BLOCK)
            torch._dynamo.mark_dynamic(cache.slots, 0)
        with torch.no_grad():
            compiled(model, cache, torch.zeros(rows, 1, dtype=torch.int64, device=compute.device), compute)
        known[key] = compiled
    return known[key]
