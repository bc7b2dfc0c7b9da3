"""llama.cpp gives our logits and greedy texts from our GGUF files; install it by hand, for it compiles for long."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from tests.families import make
from tests.model.exchange.test_gguf_model import MODELS, write

llama_cpp = pytest.importorskip("llama_cpp", reason="needs pip install llama-cpp-python")
pytestmark = pytest.mark.slow

FLOAT32 = 0  # of ggml's types; the cache of keys and values is float16 by default
# llama.cpp looks GELU up in a table of float16 numbers.
TOLERANCE = {"gpt2": 5e-3, "llama": 5e-5, "arcee": 5e-5}


def opened(path: Path, config: ModelConfig) -> Any:
    """Returns llama.cpp's model. One token a batch: some builds of its AMX kernels crash on several."""
    return llama_cpp.Llama(
        str(path), n_ctx=config.context, n_batch=1, n_ubatch=1, n_threads=1, n_threads_batch=1, logits_all=True,
        type_k=FLOAT32, type_v=FLOAT32, flash_attn=False, verbose=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_and_a_greedy_text_are_ours(name, tmp_path):
    family, changes, architecture = MODELS[name]
    model = make(family, **changes, context=256)
    write(model, tmp_path / "x.gguf")
    theirs = opened(tmp_path / "x.gguf", model.config)
    ids = torch.randint(model.config.vocab_size, (100,), generator=torch.Generator().manual_seed(2))
    theirs.eval(ids.tolist())
    found = torch.tensor(theirs.scores[:100])
    torch.testing.assert_close(found, model(ids[None])[0], rtol=0, atol=TOLERANCE[architecture])
    theirs.reset()
    prompt = ids[:5].tolist()
    text = [*prompt, *islice(theirs.generate(prompt, temp=0.0, repeat_penalty=1.0), 100)]
    ours = model(torch.tensor([text[:-1]]))[0, len(prompt) - 1 :]  # (100, V): before each token of the text
    chosen = ours.gather(1, torch.tensor(text[len(prompt) :])[:, None])
    behind = ours.amax(1) - chosen[:, 0]
    assert behind.max() <= 2 * TOLERANCE[architecture]  # another token than ours only where two are tied
    assert (behind == 0).sum() >= 98


@pytest.mark.parametrize("name", ["gpt2", "llama", "portable"])
@pytest.mark.parametrize("kind, tolerance", [("F16", 0.03), ("Q8_0", 0.5)])  # it rounds activations to the type too
@torch.no_grad()
def test_rounded_files_open_and_give_logits_near_ours(name, kind, tolerance, tmp_path):
    family, changes, _ = MODELS[name]
    model = make(family, **changes, context=256)
    write(model, tmp_path / "x.gguf", kind=kind)
    theirs = opened(tmp_path / "x.gguf", model.config)
    ids = torch.randint(model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(2))
    theirs.eval(ids.tolist())
    torch.testing.assert_close(torch.tensor(theirs.scores[:40]), model(ids[None])[0], rtol=0, atol=tolerance)
