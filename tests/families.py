"""The three families at toy size, and their copies in transformers with the same random weights."""

from __future__ import annotations

from typing import Any

import torch

from model.config import ModelConfig
from model.gpt import GPT

SHAPE = {"vocab_size": 96, "n_layer": 3, "n_head": 4, "d_model": 64, "context": 48}
GPT2: dict[str, Any] = {
    "position": "learned", "norm": "layer", "norm_affine": True, "norm_eps": 1e-5, "activation": "gelu",
    "bias": True, "tie_embeddings": True, "qk_norm": False, "embedding_norm": False,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "n_kv_head": 2, "d_ff": 160, "norm_affine": True, "norm_eps": 1e-5, "activation": "swiglu", "tie_embeddings": True,
    "rotary_base": 100_000.0, "qk_norm": False, "embedding_norm": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2, "llama": LLAMA, "modern": {}, "modern_grouped": {"n_kv_head": 2, "logit_softcap": 15.0},
}  # fmt: skip


def make(family: str, *, seed: int = 0, **changes: Any) -> GPT:
    """Returns a model with random weights everywhere, so that no zero or one hides an error."""
    torch.manual_seed(seed)
    model = GPT(ModelConfig(**(SHAPE | FAMILIES[family] | changes)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.normal_(std=0.15)
            else:
                p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def reference(family: str, model: GPT) -> torch.nn.Module:
    """Returns transformers' implementation with the weights of `model`."""
    import transformers

    c, own = model.config, model.state_dict()
    V, H, K, E = c.vocab_size, c.n_head, c.kv_heads, c.head_dim
    new: dict[str, torch.Tensor] = {}
    if family == "gpt2":
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=V, n_positions=c.context, n_embd=c.d_model, n_layer=c.n_layer, n_head=H,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip
        new["transformer.wte.weight"] = new["lm_head.weight"] = own["embed.weight"][:V]
        new["transformer.wpe.weight"] = own["position_embed.weight"]
        names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj",
                 "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}  # fmt: skip
        for layer in range(c.n_layer):
            for ours, other in names.items():
                for kind in ("weight", "bias"):
                    value = own[f"blocks.{layer}.{ours}.{kind}"]
                    new[f"transformer.h.{layer}.{other}.{kind}"] = value.T if value.dim() == 2 else value  # Conv1D
        for kind in ("weight", "bias"):
            new[f"transformer.ln_f.{kind}"] = own[f"norm.{kind}"]
    else:
        shape: dict[str, Any] = dict(  # noqa: C408
            vocab_size=V, hidden_size=c.d_model, intermediate_size=c.ff_width, num_hidden_layers=c.n_layer,
            num_attention_heads=H, num_key_value_heads=K, max_position_embeddings=c.context,
            rms_norm_eps=c.norm_eps, rope_parameters={"rope_type": "default", "rope_theta": c.rotary_base},
            tie_word_embeddings=c.tie_embeddings, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        if family == "llama":
            theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
            names = {"mlp.up": "mlp.up_proj", "mlp.gate": "mlp.gate_proj", "mlp.down": "mlp.down_proj",
                     "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}  # fmt: skip
            new["model.norm.weight"] = own["norm.weight"]
        else:
            theirs = transformers.NanoChatForCausalLM(
                transformers.NanoChatConfig(
                    **shape, hidden_act="relu2", final_logit_softcapping=c.logit_softcap or None
                )
            )
            names = {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
        new["model.embed_tokens.weight"] = own["embed.weight"][:V]
        new["lm_head.weight"] = own["embed.weight" if c.tie_embeddings else "lm_head.weight"][:V]
        for layer in range(c.n_layer):
            ours, other = f"blocks.{layer}.", f"model.layers.{layer}."
            q, k, v = own[ours + "attention.qkv.weight"].split([H * E, K * E, K * E])
            if family != "llama":  # NanoChat rotates the other way, as if the halves of each head were swapped
                q, k = (w.view(-1, 2, E // 2, c.d_model).flip(1).reshape(w.shape) for w in (q, k))
            for name, value in (("q", q), ("k", k), ("v", v), ("o", own[ours + "attention.output.weight"])):
                new[f"{other}self_attn.{name}_proj.weight"] = value
            for mine, yours in names.items():
                new[f"{other}{yours}.weight"] = own[f"{ours}{mine}.weight"]
    missing, unexpected = theirs.load_state_dict(new, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return theirs.eval()
