"""transformers and llama.cpp with the weights of a checkpoint, as functions that continue a prompt greedily."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from model.checkpoints import reader
from model.device import DTYPES
from model.exchange import gguf_model, huggingface
from model.exchange.other_programs import is_installed
from model.exchange.source import SpecialIds

Run = Callable[[], list[int]]  # continues the prompt greedily and returns the new ids


def transformers_peers(checkpoint: str, ids: list[int], tokens: int) -> Iterator[tuple[str, Run, int]]:
    """transformers' generate with its defaults, but that no token ends the text."""
    if not is_installed("transformers"):
        return print("transformers is not installed and is left out: pip install -e '.[bench]'")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    found = reader.find(Path(checkpoint))
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write_model(Path(folder) / "hf", found.config, found.weights(), ids=SpecialIds(0))
        exact = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=torch.float32)
        given = torch.tensor([ids])
        options = {"attention_mask": torch.ones_like(given), "max_new_tokens": tokens, "do_sample": False}
        for dtype in ("float32", "bfloat16"):
            model: Any = exact
            if dtype != "float32":
                model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=DTYPES[dtype])
            model.generation_config.eos_token_id = None

            def run(model: Any = model) -> list[int]:
                return model.generate(given, **options)[0, len(ids) :].tolist()

            yield f"transformers {dtype}", run, sum(weight.nbytes for weight in model.parameters())


def llama_cpp_peers(
    checkpoint: str, ids: list[int], tokens: int, *, gguf: str | None = None
) -> Iterator[tuple[str, Run, int]]:
    """llama.cpp with and without flash attention on the same weights in Q8_0, and on a given file."""
    if not is_installed("llama_cpp") or not is_installed("gguf"):
        return print("llama.cpp is left out: it needs pip install llama-cpp-python gguf")
    found = reader.find(Path(checkpoint))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        tokenizer = {"tokenizer.ggml.model": "no_vocab"}  # it only sees ids
        gguf_model.write_model(path, found.config, found.weights(), kind="Q8_0", tokenizer=tokenizer, about={})
        yield "llama.cpp Q8_0", *llama_cpp_run(path, ids, tokens, flash_attention=True)
        yield "llama.cpp Q8_0, no flash", *llama_cpp_run(path, ids, tokens, flash_attention=False)
    if gguf is not None:
        yield f"llama.cpp {Path(gguf).name}", *llama_cpp_run(Path(gguf), ids, tokens, flash_attention=True)


def llama_cpp_run(path: Path, ids: list[int], tokens: int, *, flash_attention: bool) -> tuple[Run, int]:
    """Its prompt stays in the cache, so only new tokens are timed. Batches of one: larger ones crash some builds."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(path), n_ctx=len(ids) + tokens + 32, n_batch=1, n_ubatch=1, n_threads=torch.get_num_threads(),
        logits_all=True, flash_attn=flash_attention, use_mmap=False, verbose=False,
    )  # fmt: skip
    llama.eval(ids)
    first = int(llama.scores[len(ids) - 1].argmax())

    def run() -> list[int]:
        new, llama.n_tokens = [first], len(ids)
        while len(new) < tokens:
            llama.eval(new[-1:])
            new.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        return new

    return run, path.stat().st_size
