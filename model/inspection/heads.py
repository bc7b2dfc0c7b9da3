"""What single attention heads do: scores of known patterns, and the loss without a head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import InputError
from ..gpt import GPT
from .attention import attention_weights

SEQUENCES = 8  # of random tokens; the scores are means over them
LONGEST = 50  # random tokens before they are repeated
RESAMPLES = 4000


@dataclass(frozen=True)
class HeadScores:
    """Mean attention weights on random tokens that are repeated once, each (L, H), between 0 and 1.

    Olsson et al. 2022, "In-context learning and induction heads": an induction head looks for an earlier copy of the
    present token and reads the token after it, which is then the likely next one. It works together with a
    previous-token head in an earlier layer. Duplicate-token heads read the earlier copy itself (Wang et al. 2022,
    "Interpretability in the wild").
    """

    induction: Tensor  # from the second copy of a token to the token after its first copy
    previous_token: Tensor  # from each token to the one before it
    duplicate_token: Tensor  # from the second copy of a token to the first
    chance: dict[str, float]  # by name: the score of a head that reads all tokens so far equally


@torch.no_grad()
def head_scores(model: GPT, *, start: int, exclude: Sequence[int] = (), seed: int = 1) -> HeadScores:
    """start: the id that begins a document. exclude: ids that are not drawn, such as special tokens.

    Raises InputError if the context has no room for two tokens twice.
    """
    n = min(LONGEST, (model.config.context - 1) // 2)
    if n < 2:
        raise InputError(f"the scores of heads need a context of at least 5 tokens, not {model.config.context}")
    allowed = torch.tensor([i for i in range(model.config.vocab_size) if i not in {start, *exclude}] or [start])
    drawn = torch.randint(len(allowed), (SEQUENCES, n), generator=torch.Generator().manual_seed(seed))
    half = allowed[drawn]  # (SEQUENCES, n)
    ids = torch.cat([torch.full((SEQUENCES, 1), start), half, half], dim=1)
    weights = attention_weights(model, ids.to(model.embed.weight.device)).mean(1)  # (L, H, T, T), T = 1 + 2 n
    # The diagonal `offset` has the weights from each position to the one `offset` before it. The first position of the
    # second copy is n + 1, so its row in that diagonal is n + 1 - offset.
    places = {"induction": (n - 1, n + 1), "previous_token": (1, 1), "duplicate_token": (n, n + 1)}
    T = torch.arange(ids.shape[1])
    uniform = (T <= T[:, None]) / (T + 1.0)[:, None]  # (T, T)

    def mean(of: Tensor, offset: int, first: int) -> Tensor:
        return of.diagonal(-offset, dim1=-2, dim2=-1)[..., first - offset :].mean(-1)

    scores = {name: mean(weights, *place).cpu() for name, place in places.items()}
    return HeadScores(**scores, chance={name: float(mean(uniform, *place)) for name, place in places.items()})


@dataclass(frozen=True)
class Ablation:
    """The loss of a text without each head. Index H of the second axis: without all heads of the layer."""

    loss: float  # nats per token of the whole model
    increase: Tensor  # (L, H + 1) nats per token
    low: Tensor  # (L, H + 1) 95 % interval over windows of the text; NaN if there is only one
    high: Tensor
    tokens: int  # that were predicted
    windows: int


@torch.no_grad()
def ablate_heads(model: GPT, windows: Tensor, *, kind: str = "mean", seed: int = 1) -> Ablation:
    """windows (N, T + 1) of ids: predicts the last T tokens of each, with every head replaced in turn.

    kind: "mean" replaces a head's output by its mean over all positions of the text, which keeps what the head always
    adds and removes what it knows; "zero" removes it. Intervals are bootstrapped over windows, paired: each window
    with a head is compared with the same window without.
    """
    if kind not in ("mean", "zero"):
        raise InputError(f"ablation={kind!r} is not one of mean, zero")
    inputs, targets = windows[:, :-1], windows[:, 1:]
    block_inputs, outputs = _block_inputs(model, inputs)
    H, base = model.config.n_head, _losses(model, block_inputs[-1][0], targets, after=model.config.n_layer)
    found = []
    for layer, output in enumerate(outputs):
        value = output if kind == "mean" else torch.zeros_like(output)
        for heads in [*([head] for head in range(H)), range(H)]:
            with replaced_heads(model, layer, heads, value=value):
                x, rest = block_inputs[layer]
                found.append(_losses(model, x, targets, rest=rest, after=layer))
    increases = (torch.stack(found) - base).view(model.config.n_layer, H + 1, -1)  # (L, H + 1, N) nats per token
    low, high = bootstrap_interval(increases, seed=seed)
    return Ablation(float(base.mean()), increases.mean(-1).cpu(), low, high, targets.numel(), len(windows))


@contextlib.contextmanager
def replaced_heads(model: GPT, layer: int, heads: Sequence[int], *, value: Tensor) -> Iterator[None]:
    """In the body, the outputs of some heads are their part of `value` (H*E,) at every position."""
    E = model.config.head_dim

    def replace(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()  # (B, T, H*E), before the output matrix
        for head in heads:
            z[..., head * E : (head + 1) * E] = value[head * E : (head + 1) * E]
        return (z,)

    block: Any = model.blocks[layer]
    handle = block.attention.output.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def bootstrap_interval(values: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """values (..., N) -> the 95 % bootstrap interval of their mean over N, two tensors (...); NaN if N is 1."""
    N = values.shape[-1]
    if N == 1:
        return torch.full(values.shape[:-1], torch.nan), torch.full(values.shape[:-1], torch.nan)
    drawn = torch.randint(N, (RESAMPLES, N), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(RESAMPLES, N).scatter_add_(1, drawn, torch.ones(RESAMPLES, N))
    means = values.cpu().float() @ counts.T / N  # (..., RESAMPLES)
    low, high = means.quantile(torch.tensor([0.025, 0.975]), dim=-1)
    return low, high


def _block_inputs(model: GPT, ids: Tensor) -> tuple[list[tuple[Tensor, tuple]], list[Tensor]]:
    """Returns the arguments of each block, (x, rest), and of the norm after them; and the mean head outputs (H*E,)."""
    arguments: list[tuple[Tensor, tuple]] = []
    outputs: list[Tensor] = []
    handles, blocks = [], list[Any](model.blocks)
    for block in blocks:
        handles.append(block.register_forward_pre_hook(lambda _, args: arguments.append((args[0], args[1:]))))
        output = block.attention.output
        handles.append(output.register_forward_pre_hook(lambda _, args: outputs.append(args[0].mean((0, 1)))))
    handles.append(blocks[-1].register_forward_hook(lambda _, __, result: arguments.append((result, ()))))
    try:
        model.hidden(ids)
    finally:
        for handle in handles:
            handle.remove()
    return arguments, outputs


def _losses(model: GPT, x: Tensor, targets: Tensor, *, after: int, rest: tuple = ()) -> Tensor:
    """x (N, T, D): the residual stream before block `after`. Returns the mean loss of each row, (N,) in nats."""
    for block in model.blocks[after:]:
        x = block(x, *rest)
    h = model.norm(x)
    rows = zip(h, targets, strict=True)  # one by one, because the logits are large
    return torch.stack([F.cross_entropy(model.head(row).float(), wanted) for row, wanted in rows])
