"""The transformer on one page: token ids in, logits of the next token out.

Axes: B batch, T time, S positions that a query may attend to (T without a cache, the cached positions with one),
D d_model, H query heads, K key/value heads (K <= H), E head dim, V vocabulary, L layers; d_ff is the width of the MLP.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Mask, attend, document_mask
from .cache import KVCache
from .config import ModelConfig
from .device import working_dtype
from .loss import head_loss, soft_cap
from .rotary import Rotary, apply_rotary, rotary_tables


class Attention(nn.Module):
    """Causal self-attention: each token takes a weighted mean of the values of all tokens up to itself."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.n_head, self.n_kv_head = config.n_head, config.kv_heads
        self.qk_norm_eps = config.norm_eps if config.qk_norm else None
        # One matrix computes queries, keys and values, whose widths are H*E, K*E and K*E.
        self.qkv_widths = [heads * config.head_dim for heads in (config.n_head, config.kv_heads, config.kv_heads)]
        self.qkv = nn.Linear(config.d_model, sum(self.qkv_widths), bias=config.bias)
        self.output = nn.Linear(self.qkv_widths[0], config.d_model, bias=config.bias)

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Mask, cache: KVCache | None) -> Tensor:
        B, T, _ = x.shape
        H, K = self.n_head, self.n_kv_head
        # QK-norm and rotary act on each head separately, so queries and keys pass through as one tensor of H + K heads.
        qk, v = self.qkv(x).view(B, T, H + 2 * K, self.head_dim).split([H + K, K], dim=2)  # (B, T, heads, E) each
        if self.qk_norm_eps is not None:  # Henry et al. 2020; the same before and after rotary, which keeps norms
            qk = F.rms_norm(qk, (self.head_dim,), eps=self.qk_norm_eps).to(v.dtype)  # autocast norms in float32
        if rotary is not None:
            qk = apply_rotary(qk, rotary)
        q, k = qk.split([H, K], dim=2)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # (B, H, T, E), (B, K, T, E), (B, K, T, E)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, K, S, E)
        y = attend(q, k, v, mask)  # (B, H, T, E)
        return self.output(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, H*E) -> (B, T, D)


class MLP(nn.Module):
    """Applied to each position separately: widen to d_ff, apply the activation, project back to D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # (B, T, d_ff)
        if self.activation == "swiglu":
            h = F.silu(self.gate(x)) * h  # Shazeer 2020
        elif self.activation == "relu2":
            h = F.relu(h).square()  # So et al. 2021
        else:
            h = F.gelu(h, approximate="tanh" if self.activation == "gelu" else "none")  # GPT-2 uses tanh
        return self.down(h)


class Block(nn.Module):
    """One pre-norm layer: attention, then MLP. Each reads a normalized copy of the residual stream x and adds to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Mask, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """A decoder-only transformer: embedding, L blocks, final norm, output head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D, V = config.d_model, config.padded_vocab
        self.embed = nn.Embedding(V, D)
        self.position_embed = nn.Embedding(config.context, D) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        # With tied embeddings, the embedding matrix is the head. Inference may put a quantized module here.
        self.lm_head: nn.Module | None = None if config.tie_embeddings else nn.Linear(D, V, bias=False)
        self.register_buffer("cos", None, persistent=False)  # not saved, but moved to the device with the model
        self.register_buffer("sin", None, persistent=False)
        if not self.embed.weight.is_meta:  # on the meta device, torch would import its compiler, which takes seconds
            self.build_rotary()
        for name, weight in self.named_parameters():
            self.init_weight(name, weight)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        documents: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V); with targets (B, T), the summed loss instead, a tensor ().

        With a cache, ids are appended to it; T plus the cache's length must not exceed the context. Without one,
        documents (B, R), an attention.document_table, may give the documents of each row; attention then stays within
        them. The loss is the sum of -ln p over all targets except those of -100.
        """
        h = self.hidden(ids, cache, documents=documents)
        if targets is None:
            return self.head(h)
        vocab_size, cap = self.config.vocab_size, self.config.logit_softcap
        return head_loss(h.flatten(0, 1), self.head_weight, targets.flatten(), vocab_size=vocab_size, cap=cap)

    def hidden(self, ids: Tensor, cache: KVCache | None = None, *, documents: Tensor | None = None) -> Tensor:
        """ids (B, T) -> the last layer's normalized output (B, T, D)."""
        assert cache is None or documents is None, "a cache holds one document per row"
        T = ids.shape[1]
        mask: Mask = None  # without a mask, attention is causal
        if cache is not None:
            positions, mask = cache.begin(T)  # (B, T) and (B, 1, T, S)
        elif documents is not None:
            dtype = working_dtype(self.embed.weight)  # positions are (B, T), a dense mask (B, 1, T, T)
            positions, mask = document_mask(documents, T, dtype=dtype, head_dim=self.config.head_dim)
        else:
            positions = torch.arange(T, device=ids.device)  # (T,)
        x = self.embed(ids)  # (B, T, D)
        if self.position_embed is not None:
            x = x + self.position_embed(positions)  # + (T, D) or (B, T, D)
        if self.config.embedding_norm:
            x = F.rms_norm(x, (self.config.d_model,), eps=self.config.norm_eps)
        x = self.dropout(x)
        rotary = self.rotary_at(positions) if self.config.position == "rotary" else None
        for block in self.blocks:
            x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.end(T)
        return self.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head, with the padded vocabulary entries."""
        head: Any = self.embed if self.lm_head is None else self.lm_head
        return head.weight

    def head(self, h: Tensor) -> Tensor:
        """h (..., D) -> logits (..., V), without the padded vocabulary entries."""
        logits = F.linear(h, self.embed.weight) if self.lm_head is None else self.lm_head(h)
        return soft_cap(logits[..., : self.config.vocab_size], self.config.logit_softcap)

    def build_rotary(self) -> None:
        """Fills the tables of cosines and sines, (context, E/2); to be called again after to_empty()."""
        self.cos, self.sin = rotary_tables(self.config, self.embed.weight.device)

    def rotary_at(self, positions: Tensor) -> Rotary:
        """Returns the factors for positions (T,) or (B, T), shaped to broadcast over (B, T, heads, E/2)."""
        dtype = working_dtype(self.embed.weight)  # float32 factors would promote queries and keys
        return self.cos[positions].to(dtype).unsqueeze(-2), self.sin[positions].to(dtype).unsqueeze(-2)

    @torch.no_grad()
    def init_weight(self, name: str, weight: Tensor) -> None:
        """Initializes the parameter called `name` as GPT-2 does (Radford et al. 2019, section 2.3).

        | parameter                                          | initial value                     |
        | -------------------------------------------------- | --------------------------------- |
        | matrices                                           | normal, standard deviation 0.02   |
        | matrices that write into the residual stream (2 L) | normal, 0.02 / sqrt(2 L)          |
        | an embedding that is neither normalized nor tied   | normal, 0.3                       |
        | norm weights                                       | 1                                 |
        | biases, padded rows of embedding and head          | 0                                 |
        """
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() == 1:
            nn.init.ones_(weight)
        elif name == "embed.weight" and not (self.config.embedding_norm or self.config.tie_embeddings):
            nn.init.normal_(weight, std=0.3)  # with 0.02, the quickstart loses 2 % of bits/byte
        else:
            residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
        if name in ("embed.weight", "lm_head.weight"):
            weight[self.config.vocab_size :].zero_()


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(config.d_model, config.norm_eps, elementwise_affine=config.norm_affine, bias=config.bias)
    return nn.RMSNorm(config.d_model, config.norm_eps, elementwise_affine=config.norm_affine)
