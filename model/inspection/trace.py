"""A forward pass operation by operation: the line of code, named axes, FLOPs, bytes, mean and deviation."""

from __future__ import annotations

import contextlib
import inspect
import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..attention import explicit_attention
from ..config import ModelConfig
from ..gpt import GPT

NETWORK = Path(__file__).parent.parent  # the code that is traced
PRODUCTS = {"linear": 0, "__matmul__": 0, "matmul": 0, "baddbmm": 1}  # the argument whose last axis is summed over
GATHERS = {"embedding": 0, "__getitem__": 1}  # read only the rows that they return; the argument with the indices
# Functions of the network that compute a part of a module, and the part's name.
PARTS = {"rotary_at": "rotary", "apply_rotary": "rotary", "explicit_attention": "weights"}


@dataclass(frozen=True)
class Operation:
    """One call of a torch function in the forward pass, and its result."""

    module: str  # such as blocks.0.attention.qkv, or blocks.0.attention.rotary for a part of a module
    name: str  # of the torch function
    axes: tuple[str, ...]  # of the result, named as in gpt.py: B, T, D, H, K, E, V; F is d_ff, C the context
    shape: tuple[int, ...]
    dtype: str
    flops: int  # of matrix products, two per multiplication with its addition; 0 for all others
    n_bytes: int  # read and written; 0 for a view, which only gives memory another shape
    mean: float  # of the result's finite values
    deviation: float
    view: bool
    place: str  # file and line, such as gpt.py:40
    code: str  # that line


@torch.no_grad()
def trace(model: GPT, ids: Tensor) -> list[Operation]:
    """Runs the model on ids (B, T) and returns what it computes, in order.

    Attention is computed in its written-out form, where the model may use a fused kernel, so that scores, softmax and
    weighted sum are separate. FLOPs are those of matrix products, as planning/plan.py counts them (Chowdhery et al.
    2022, appendix B): their sum is B * T * flops_per_token(model, context=T) / 3, since the backward pass takes the
    other two thirds.
    """
    found = record(model, ids)
    names = axis_names(small := ruler(model.config))
    with torch.random.fork_rng(devices=[]):
        measured = record(GPT(small).eval(), torch.zeros(RULER_BATCH, RULER_TIME, dtype=torch.int64))
    assert [op.name for op in found] == [op.name for op in measured]
    axes = [tuple(names.get(size, str(size)) for size in op.shape) for op in measured]
    return [replace(op, axes=named) for op, named in zip(found, axes, strict=True)]


def record(model: GPT, ids: Tensor) -> list[Operation]:
    """Returns the operations of a forward pass, without names of axes."""
    recorder = Recorder()
    with recorder.modules_of(model), recorder:
        model(ids)
    return recorder.operations


class Recorder(TorchFunctionMode):
    """Sees every torch function that is called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.path = [""]  # the module that is running, below those that called it

    @contextlib.contextmanager
    def modules_of(self, model: GPT) -> Iterator[None]:
        """Follows which module is running."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.path.append(name)))
            handles.append(module.register_forward_hook(lambda *_: [self.path.pop()][1:] or None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with self:  # the functions that it is made of are recorded instead
                q, k, v = args
                return explicit_attention(q, k, v, kwargs.get("attn_mask"))
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else [result]
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        for one in results:
            if isinstance(one, Tensor) and (func.__name__.endswith("_") or all(one is not x for x in inputs)):
                self.operations.append(self.describe(func, inputs, one, args))
        return result

    def describe(
        self, func: Callable[..., Any], inputs: list[Tensor], result: Tensor, args: tuple[Any, ...]
    ) -> Operation:
        name = func.__name__ if func.__name__ != "__get__" else func.__self__.__name__  # type: ignore[attr-defined]
        storage = result.untyped_storage().data_ptr()
        in_place = any(result is x for x in inputs)
        view = not in_place and any(storage == x.untyped_storage().data_ptr() for x in inputs)
        read = [result, args[GATHERS[name]]] if name in GATHERS else inputs
        n_bytes = sum(x.numel() * x.element_size() for x in [result, *read] if isinstance(x, Tensor))
        flops = 2 * result.numel() * args[PRODUCTS[name]].shape[-1] if name in PRODUCTS else 0
        values = result.float()
        values = values[values.isfinite()]
        function, place, code = calling_line()
        path = self.path[-1] or ("head" if function == "head" else "")  # a tied head is no module of its own
        module = ".".join(filter(None, (path, PARTS.get(function))))
        return Operation(
            module=module,
            name=name.strip("_"),
            axes=(),
            shape=tuple(result.shape),
            dtype=str(result.dtype).removeprefix("torch."),
            flops=flops,
            n_bytes=0 if view else n_bytes,
            mean=float(values.mean()) if values.numel() else 0.0,
            deviation=float(values.std(correction=0)) if values.numel() else 0.0,
            view=view,
            place=place,
            code=code,
        )


def calling_line() -> tuple[str, str, str]:
    """Returns the function of the network that is running, its file and line, and the text of the line."""
    frame = inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if NETWORK in path.parents and path.parent != Path(__file__).parent:
            code = linecache.getline(str(path), frame.f_lineno).partition("  # ")[0].strip()
            return frame.f_code.co_name, f"{path.relative_to(NETWORK)}:{frame.f_lineno}", code
        frame = frame.f_back
    return "", "", ""


RULER_BATCH, RULER_TIME, RULER_VOCABULARY = 5, 7, 1950


def ruler(config: ModelConfig) -> ModelConfig:
    """Returns the same network with sizes that all differ, so that the size of an axis tells its name."""
    grouped = 1 < config.kv_heads < config.n_head
    heads = 6 if grouped else 3
    kv_heads = heads if config.kv_heads == config.n_head else 3 if grouped else 1
    sizes: dict[str, Any] = {"n_head": heads, "n_kv_head": kv_heads, "d_model": 22 * heads, "d_ff": 1000, "context": 13}
    return replace(config, vocab_size=RULER_VOCABULARY, **sizes)


def axis_names(config: ModelConfig) -> dict[int, str]:
    """Returns the names of the ruler's sizes."""
    H, K, E = config.n_head, config.kv_heads, config.head_dim
    names = [
        (RULER_BATCH, "B"), (RULER_TIME, "T"), (config.d_model, "D"), (H, "H"), (E, "E"), (config.ff_width, "F"),
        (config.padded_vocab, "V"), (config.vocab_size, "V"), (config.context, "C"), (K, "K"), (H + K, "H+K"),
        (H + 2 * K, "H+2K"), (RULER_BATCH * H, "B·H"), ((H + 2 * K) * E, "(H+2K)·E"), ((H + K) * E, "(H+K)·E"),
        (K * E, "K·E"), (H // K, "H/K"), (E // 2, "E/2"),
    ]  # fmt: skip
    return dict(reversed(names)) | {1: "1"}  # of several names for a size, the first
