"""ModelConfig: the shape of the network."""

from __future__ import annotations

from dataclasses import dataclass, field

# Settings of older checkpoints: new names of renamed ones; removed ones, with the value that meant "off".
RENAMED = {
    "tied": "tie_embeddings",
    "norm_weight": "norm_affine",
    "norm_epsilon": "norm_eps",
    "softcap": "logit_softcap",
}
REMOVED = {"zero_init": None, "ngram": 0, "ngram_contexts": 0}  # None: ignored, it only affected initialization

# Far above any model in use: larger numbers are typing errors or damage, and would exhaust memory or never end.
LARGEST = {"n_layer": 10_000, "n_head": 2**20, "d_model": 2**20, "d_ff": 2**24, "context": 2**20}

ADVANCED = {"group": "advanced"}


@dataclass
class ModelConfig:
    """The shape of a decoder-only transformer. The defaults are the modern preset at about 7M parameters.

    Presets in conf/model cover three families: GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023) and the modern
    preset, which transformers calls NanoChat.
    """

    vocab_size: int = field(default=0, metadata=ADVANCED)  # set from the tokenizer
    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int | None = None  # null: n_head; fewer: grouped-query attention
    d_model: int = 256
    d_ff: int | None = None  # width of the MLP; null: 4 * d_model
    context: int = 256  # longest sequence, in tokens
    dropout: float = 0.0  # on the embedding and on each sub-layer's output
    position: str = "rotary"  # rotary | learned
    rotary_base: float = field(default=10_000.0, metadata=ADVANCED | {"needs": ("position=rotary",)})
    # null | [factor] | [factor, low, high, original context]: for longer contexts, see rotary.py
    rotary_scaling: list[float] | None = field(default=None, metadata=ADVANCED | {"needs": ("position=rotary",)})
    norm: str = "rms"  # rms | layer
    # learned scale in the norms (and, with bias, a shift in LayerNorm)
    norm_affine: bool = field(default=False, metadata=ADVANCED)
    norm_eps: float = field(default=1e-6, metadata=ADVANCED)
    activation: str = "relu2"  # relu2 | gelu (GPT-2's tanh approximation) | gelu_exact | swiglu
    bias: bool = False  # in linear layers and norms
    tie_embeddings: bool = False  # share the embedding matrix with the output head
    qk_norm: bool = field(default=True, metadata=ADVANCED)  # RMSNorm on queries and keys
    embedding_norm: bool = field(default=True, metadata=ADVANCED)  # RMSNorm on the embedding
    logit_softcap: float = field(default=0.0, metadata=ADVANCED)  # logits = cap * tanh(logits / cap); 0: off

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
        """Rows of embedding and head: a multiple of 64, which kernels prefer. Padded ids never leave the model."""
        return (self.vocab_size + 63) // 64 * 64

    def validate(self) -> list[str]:
        """Returns all errors in the shape, one line each; empty if it can be built."""
        errors = []
        for name, largest in LARGEST.items():
            if (value := getattr(self, name)) is not None and not 1 <= value <= largest:
                errors.append(f"model.{name}={value} must be between 1 and {largest:,}")
        if not 0 <= self.vocab_size <= 2**24:  # 0: not yet known
            errors.append(f"model.vocab_size={self.vocab_size} must be between 0 and {2**24:,}")
        if not errors:
            if self.d_model % self.n_head:
                errors.append(f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}")
            elif self.position == "rotary" and self.head_dim % 2:
                errors.append(f"rotary positions need an even head dim; model.d_model / model.n_head = {self.head_dim}")
            if self.n_kv_head == 0 or self.kv_heads < 1 or self.n_head % self.kv_heads:
                errors.append(f"model.n_head={self.n_head} is not divisible by model.n_kv_head={self.n_kv_head}")
        if not 0 <= self.dropout < 1:
            errors.append(f"model.dropout={self.dropout} must be in [0, 1)")
        if not 0 <= self.logit_softcap < 1e30:  # NaN fails too
            errors.append(f"model.logit_softcap={self.logit_softcap} must be 0 (off) or above, and below 1e30")
        for name in ("rotary_base", "norm_eps"):
            if not 0 < getattr(self, name) < 1e30:
                errors.append(f"model.{name}={getattr(self, name)} must be above 0 and below 1e30")
        errors += check_scaling(self.rotary_scaling)
        for name, allowed in (
            ("position", ("rotary", "learned")),
            ("norm", ("rms", "layer")),
            ("activation", ("relu2", "gelu", "gelu_exact", "swiglu")),
        ):
            if getattr(self, name) not in allowed:
                errors.append(f"model.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        return errors


def check_scaling(scaling: list[float] | None) -> list[str]:
    """Returns what is wrong with rotary_scaling, in one line; see rotary.py."""
    if scaling is None:
        return []
    if len(scaling) not in (1, 4) or not all(0 < value < 1e30 for value in scaling):
        form = "[factor] or [factor, low, high, original context], all above 0"
    elif len(scaling) == 4 and not scaling[1] < scaling[2]:
        form = "with low < high"
    else:
        return []
    return [f"model.rotary_scaling={scaling} must be {form}"]
