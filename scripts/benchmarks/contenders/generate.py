"""nanoGPT's and transformers' generate with the weights of a GPT-2 of this project, on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.gpt import GPT

from . import nanogpt

Generate = Callable[[], list[int]]  # continues the prompt greedily and returns the new ids


def nanogpt_generate(model: GPT, prompt: Sequence[int], *, checkout: str, tokens: int) -> Generate:
    """nanoGPT's in float32, greedy through top_k=1, with GPT-2's tanh form of GELU."""
    theirs, c, device = nanogpt.module(checkout), model.config, model.embed.weight.device
    shape = {"block_size": c.context, "vocab_size": c.vocab_size, "n_layer": c.n_layer, "n_head": c.n_head}
    module = load(
        theirs.GPT(theirs.GPTConfig(**shape, n_embd=c.d_model, dropout=0.0, bias=True)),
        gpt2_state(model, transposed=False),
    )
    module.to(device)
    for block in module.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    ids = torch.tensor([prompt], device=device)
    return lambda: module.generate(ids, tokens, top_k=1)[0, len(prompt) :].tolist()


def transformers_generate(model: GPT, prompt: Sequence[int], *, dtype: torch.dtype, tokens: int) -> Generate:
    """transformers' with its defaults: eager, with its cache; greedy, and no token ends the text."""
    import transformers

    c, device = model.config, model.embed.weight.device
    shape: dict[str, Any] = {"n_positions": c.context, "n_embd": c.d_model, "n_layer": c.n_layer, "n_head": c.n_head}
    config = transformers.GPT2Config(**shape, vocab_size=c.vocab_size, bos_token_id=None, eos_token_id=None)
    module = load(transformers.GPT2LMHeadModel(config), gpt2_state(model, transposed=True)).to(device, dtype)
    ids = torch.tensor([prompt], device=device)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False, "use_cache": True}
    return lambda: module.generate(ids, **options)[0, len(prompt) :].tolist()


def gpt2_state(model: GPT, *, transposed: bool) -> dict[str, Tensor]:
    """The weights under GPT-2's names. transformers stores the matrices of its blocks transposed."""
    own, size = model.state_dict(), model.config.vocab_size
    state = {"transformer.wte.weight": own["embed.weight"][:size], "lm_head.weight": own["embed.weight"][:size]}
    state["transformer.wpe.weight"] = own["position_embed.weight"]
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj"}
    names |= {"mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        state[f"transformer.ln_f.{kind}"] = own[f"norm.{kind}"]
        for layer in range(model.config.n_layer):
            for ours, theirs in names.items():
                value = own[f"blocks.{layer}.{ours}.{kind}"]
                value = value.T if transposed and value.dim() == 2 else value
                state[f"transformer.h.{layer}.{theirs}.{kind}"] = value
    return state


def load(module: Any, state: dict[str, Tensor]) -> Any:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith(".attn.bias") for name in missing), (missing, unexpected)
    return module.eval()
