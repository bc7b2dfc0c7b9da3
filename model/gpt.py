"""The transformer on one page: token ids in, logits of the next token out.

Axes: B batch, T time, S slots that a query may look at (T without a cache, the cache's capacity with one), D d_model,
H heads, K kv heads (K <= H), E head dim, V vocab; d_ff is the width inside an MLP and L the number of layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, confine
from .cache import KVCache
from .config import ModelConfig
from .fused import RMSNorm, gelu, relu_squared, rms_norm
from .linear import Linear, linear
from .loss import head_loss
from .ngram import NGramPrior, recent

Rotary = tuple[Tensor, Tensor]  # cosines and signed sines, each (T, E), or (B, 1, T, E) where rows differ


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turns each pair (x[i], x[i + E/2]) of a query or key by its position times the pair's own speed (Su et al. 2021).

    So the dot product of a query and a key depends on how far apart they are, not on where they stand. A pair (a, b)
    becomes (a cos - b sin, b cos + a sin); the sign is in the table.
    x: (B, H, T, E), with any number of heads.
    """
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(
            config.d_model, eps=config.norm_epsilon, elementwise_affine=config.norm_weight, bias=config.bias
        )
    return RMSNorm(config.d_model, eps=config.norm_epsilon, elementwise_affine=config.norm_weight)


class Attention(nn.Module):
    """Each token compares its query with the keys of tokens up to itself and takes a weighted mean of their values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads = [config.n_head, config.kv_heads]  # of queries and of keys
        self.sizes = [config.n_head * config.head_dim] + 2 * [config.kv_heads * config.head_dim]  # H*E, K*E, K*E
        self.qk_epsilon = config.norm_epsilon if config.qk_norm else None
        self.qkv = Linear(config.d_model, sum(self.sizes), bias=config.bias)  # queries, keys, values in one product
        self.output = Linear(self.sizes[0], config.d_model, bias=config.bias)

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        B, T, _ = x.shape
        # Queries and keys are turned and normalised together: half as many kernels.
        qk, v = (
            part.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, T, (H + K) * E) -> (B, H + K, T, E); v: K heads
            for part in self.qkv(x).split([sum(self.sizes[:2]), self.sizes[2]], dim=-1)
        )
        if rotary is not None:
            qk = rotate(qk, rotary)
        if self.qk_epsilon is not None:
            qk = rms_norm(qk, self.qk_epsilon)
        q, k = qk.split(self.heads, dim=1)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, K, S, E); the mask hides the empty slots
        y = attend(q, k, v, mask)
        return self.output(y.transpose(1, 2).reshape(B, T, -1))  # (B, H, T, E) -> (B, T, H*E) -> (B, T, D)


class MLP(nn.Module):
    """On each token alone: widen to d_ff, apply the non-linearity, project back to D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.d_model, config.ff_width, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # (B, T, d_ff)
        if self.activation == "swiglu":
            h = F.silu(self.gate(x)) * h  # Shazeer 2020
        elif self.activation == "relu2":
            h = relu_squared(h)
        else:
            h = gelu(h, approximate="tanh" if self.activation == "gelu" else "none")  # GPT-2's is the former
        return self.down(h)


class Block(nn.Module):
    """One layer: attention, then MLP. Each reads a normalised copy of x, the residual stream, and adds its result."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


@dataclass(frozen=True)
class Hidden:
    """What the head turns into logits: at some positions the last layer's output and, of an n-gram prior, the row."""

    h: Tensor  # (..., D)
    row: Tensor | None  # (...); None: the model has no prior

    def __getitem__(self, index: Any) -> Hidden:
        """At some of the positions: `index` is one of the leading axes, not of D."""
        return Hidden(self.h[index], None if self.row is None else self.row[index])

    def flatten(self) -> Hidden:
        """All positions on one axis: h (N, D), row (N,)."""
        return Hidden(self.h.flatten(0, -2), None if self.row is None else self.row.flatten())


class GPT(nn.Module):
    """A decoder-only transformer: embed, L blocks, norm, head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab, config.d_model)
        self.position_embed = nn.Embedding(config.context, config.d_model) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        self.unembed: nn.Module | None = None  # tied: the head is the embedding's matrix
        if not config.tied:
            self.unembed = Linear(config.d_model, config.padded_vocab, bias=False)
        self.prior: NGramPrior | None = None
        if config.ngram_contexts:
            self.prior = NGramPrior(length=config.ngram, contexts=config.ngram_contexts, vocab_size=config.vocab_size)
        self.register_buffer("cos", None, persistent=False)  # buffers move with the model to its device, and these
        self.register_buffer("sin", None, persistent=False)  # are computed anew rather than saved
        self.make_rotary()
        self.init_weights()

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        starts: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V). With a cache, ids continue what it holds, and it then holds them too.

        T, with a cache its length + T, is at most the context; the caller sees to it. Without a cache, starts (B, T)
        says where in the row the document of each token begins: documents that share a row are then read each alone.
        With targets (B, T): the sum of their losses instead, -ln p each and 0 where the target is -100; a tensor ().
        """
        hidden = self.hidden(ids, cache, starts=starts)
        return self.head(hidden) if targets is None else head_loss(self, hidden.flatten(), targets.flatten())

    def hidden(self, ids: Tensor, cache: KVCache | None = None, *, starts: Tensor | None = None) -> Hidden:
        """ids (B, T) -> the last layer's normalised output (B, T, D), and what an n-gram prior says of them."""
        T = ids.shape[1]
        if cache is not None:
            positions, mask = cache.begin(T)  # where the new ids stand (B, T), what each may see (B, 1, T, S)
        elif starts is not None:
            positions, mask = confine(starts)  # likewise
        else:
            positions, mask = torch.arange(T, device=ids.device), None  # (T,); no mask: attend() is then causal
        x = self.embed(ids)  # (B, T, D)
        if self.position_embed is not None:
            x = x + self.position_embed(positions)  # (T, D) or (B, T, D)
        if self.config.embedding_norm:
            x = rms_norm(x, self.config.norm_epsilon)
        x = self.dropout(x)
        rotary = self.rotary_at(positions) if self.config.position == "rotary" else None
        for block in self.blocks:
            x = block(x, rotary, mask, cache)
        row = None
        if self.prior is not None:
            n = self.prior.length
            history = recent(ids, n, starts=starts) if cache is None else cache.recent(ids, n)  # (B, T, n)
            row = self.prior.rows(history)
        if cache is not None:
            cache.end(T)  # once: all layers share the positions
        return Hidden(self.norm(x), row)

    def head(self, hidden: Hidden) -> Tensor:
        """What `hidden` gave -> logits (..., V), without the padding of the vocabulary."""
        h = hidden.h
        logits = linear(h, self.embed.weight) if self.unembed is None else self.unembed(h)
        logits = logits[..., : self.config.vocab_size]
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits.float() / self.config.softcap)
        if self.prior is not None:
            logits = logits + self.prior(hidden.row)
        return logits

    def rotary_at(self, positions: Tensor) -> Rotary:
        """Cosines and signed sines for positions (T,) or (B, T), shaped to broadcast over (B, H, T, E).

        In autocast's number format where that is on: float32 tables would turn queries and keys into float32.
        """
        dtype = (
            torch.get_autocast_dtype(self.cos.device.type) if torch.is_autocast_enabled(self.cos.device.type) else None
        )
        cos, sin = self.cos[positions].to(dtype=dtype), self.sin[positions].to(dtype=dtype)
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def make_rotary(self) -> None:
        """Fills the tables of cosines and signed sines (context, E)."""
        config, device = self.config, self.embed.weight.device
        # (E/2,): radians a token, from 1 for the first pair down to nearly 1 / rotary_base for the last.
        speeds = config.rotary_base ** -(torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim)
        angles = torch.outer(torch.arange(config.context, device=device).float(), speeds)
        self.cos = angles.cos().repeat(1, 2)
        self.sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)

    def init_weights(self) -> None:
        """Draws all weights, one after the other, from torch's global generator: see init_weight."""
        for name, weight in self.named_parameters():
            self.init_weight(name, weight)

    @torch.no_grad()
    def init_weight(self, name: str, weight: Tensor) -> None:
        """Fills `weight` with first values for the parameter of that name, as GPT-2's paper does (Radford et al. 2019,
        §2.3).

        All matrices are normal with a standard deviation of 0.02; those that write into the residual stream, of which
        there are 2 L, have it divided by sqrt(2 L). Biases and the vocabulary's padding rows are 0, norm weights 1.
        """
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() == 1:
            nn.init.ones_(weight)
        else:
            writes = name.endswith(("attention.output.weight", "mlp.down.weight"))
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.config.n_layer) if writes else 0.02)
        if name in ("embed.weight", "unembed.weight"):
            weight[self.config.vocab_size :].zero_()


def on_meta(config: ModelConfig) -> GPT:
    """The network without any memory behind it: names and shapes alone."""
    with torch.device("meta"):
        return GPT(config)
