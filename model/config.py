"""ModelConfig: the shape of the network and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

FORMER = frozenset({"zero_init"})  # settings that older checkpoints still name: how weights began


@dataclass
class ModelConfig:
    """Describes one decoder-only transformer. The defaults are the project's own modern preset at about 7M parameters.

    Three families are settings of the same fields (see conf/model): GPT-2 (Radford et al. 2019), Llama (Touvron et al.
    2023) and the modern preset, whose shape other programs know as NanoChat.
    """

    vocab_size: int = 0  # set from the tokenizer
    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int | None = None  # null: as many as n_head; fewer: grouped-query attention
    d_model: int = 256
    d_ff: int | None = None  # null: 4 * d_model
    context: int = 256  # the most tokens one forward sees
    dropout: float = 0.0  # on the embedding and on what each sub-layer adds to the residual stream
    position: str = "rotary"  # rotary | learned
    rotary_base: float = 10_000.0
    norm: str = "rms"  # rms | layer
    norm_weight: bool = False  # learned scale in the norms (and, with bias, shift in LayerNorm)
    norm_epsilon: float = 1e-6
    activation: str = "relu2"  # relu2 | gelu (GPT-2's approximation by tanh) | gelu_exact | swiglu
    bias: bool = False  # in linear layers and norms
    tied: bool = False  # the head shares the embedding's matrix
    qk_norm: bool = True  # RMS-normalise queries and keys, after rotary
    embedding_norm: bool = True  # RMS-normalise the embedding
    softcap: float = 0.0  # logits -> softcap * tanh(logits / softcap); 0: as they are
    ngram: int = 0  # logits start from counts behind up to so many tokens of context; 3: from 4-grams; 0: from nothing
    ngram_contexts: int = 0  # set from the data

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_head

    @property
    def ff_width(self) -> int:
        return self.d_ff or 4 * self.d_model

    @property
    def padded_vocab(self) -> int:
        """Rows of embedding and head: a multiple of 64, for fast kernels. Ids past vocab_size never leave the model."""
        return (self.vocab_size + 63) // 64 * 64

    def problems(self) -> list[str]:
        """Everything that is wrong with the shape, one line each; empty if it can be built."""
        found = []
        for name in ("n_layer", "n_head", "d_model", "context"):
            if getattr(self, name) < 1:
                found.append(f"model.{name}={getattr(self, name)} must be at least 1")
        if not found:
            if self.d_model % self.n_head:
                found.append(f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}")
            elif self.position == "rotary" and self.head_dim % 2:
                found.append(
                    f"rotary positions need an even head width; model.d_model / model.n_head = {self.head_dim}"
                )
            if self.n_kv_head == 0 or self.kv_heads < 1 or self.n_head % self.kv_heads:
                found.append(f"model.n_head={self.n_head} is not divisible by model.n_kv_head={self.n_kv_head}")
        if self.d_ff is not None and self.d_ff < 1:
            found.append(f"model.d_ff={self.d_ff} must be at least 1")
        if not 0 <= self.dropout < 1:
            found.append(f"model.dropout={self.dropout} must be in [0, 1)")
        if not 0 <= self.softcap < float("inf"):
            found.append(f"model.softcap={self.softcap} must be 0 (off) or above")
        for name in ("ngram", "ngram_contexts"):
            if getattr(self, name) < 0:
                found.append(f"model.{name}={getattr(self, name)} must be 0 (no n-gram prior) or above")
        if self.ngram_contexts and not self.ngram:
            found.append(f"model.ngram_contexts={self.ngram_contexts} needs model.ngram above 0")
        for name in ("rotary_base", "norm_epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                found.append(f"model.{name}={getattr(self, name)} must be above 0")
        for name, allowed in (
            ("position", ("rotary", "learned")),
            ("norm", ("rms", "layer")),
            ("activation", ("relu2", "gelu", "gelu_exact", "swiglu")),
        ):
            if getattr(self, name) not in allowed:
                found.append(f"model.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        return found
