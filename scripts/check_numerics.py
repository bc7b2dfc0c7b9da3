"""One check of what a device computes, in a process of its own: its figures, and a line of JSON last.

scripts/check_device.py runs these. They compare with the CPU, with eager code, or with the plain form of a formula.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from conf import cli
from model.attention import has_varlen_kernel
from model.checkpoints import reader
from model.config import ModelConfig
from model.device import Compute, missing_for_compile, resolve_device
from model.distributed import parallel, strategies
from model.gpt import GPT
from model.inference.sampling import SamplingConfig
from model.loss import IGNORE, head_loss, summed_loss, tokens_at_once
from model.training.evaluate import to_device
from model.training.microbatch import MicroBatches
from sample import load

PROMPTS = ("A resumed run", "The tokenizer", "Each rank")
MEMORY = 4 * 2**30  # bytes of a GPU that the batch which does not fit may use, so that it fails quickly
ROWS_IN_MEMORY = 4  # the same in the rehearsal: sequences
LOSS_SIZES = {"cuda": (20_000, 768, 50_257), "cpu": (1_500, 32, 28_001)}  # tokens, width, vocabulary: enough for chunks
Found = dict[str, Any]  # passed (None: skipped), figure, and numbers by name


@dataclass
class NumericsConfig:
    """The keys of `python -m scripts.check_numerics`."""

    check: str | None = None  # loss | document_mask | out_of_memory | decoding | next_words
    device: str = "auto"
    # of the last three checks, which need a model in float32
    checkpoint: str | None = field(default=None, metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        if self.check is None or self.check not in CHECKS:
            return [f"check={self.check} is not one of {', '.join(CHECKS)}"]
        if CHECKS[self.check].needs_checkpoint and self.checkpoint is None:
            return [f"check={self.check} needs checkpoint="]
        return []


def difference(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm of the exact tensor."""
    return ((found.float() - exact).norm() / exact.norm()).item()


def check_loss(device: torch.device) -> Found:
    """The loss in chunks and its gradient are those of the plain form in bfloat16, compiled and eager."""
    tokens, width, vocab_size = LOSS_SIZES[device.type]
    padded = -(-vocab_size // 64) * 64
    generator = torch.Generator().manual_seed(1)
    h0 = torch.randn(tokens, width, generator=generator).to(device)
    weight0 = (0.05 * torch.randn(padded, width, generator=generator)).to(device)
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    targets[::9] = IGNORE
    counted = int((targets != IGNORE).sum())
    kind = "cpu" if device.type == "cpu" else "gpu"
    assert tokens_at_once(counted, padded, kind) < counted, "the loss would not be in chunks"
    targets = targets.to(device)
    compute = Compute.resolve(str(device), dtype="bfloat16")

    def run(form: Callable[..., Tensor]) -> tuple[float, Tensor, Tensor]:
        h, weight = h0.clone().requires_grad_(), weight0.clone().requires_grad_()
        with compute.autocast():
            loss = form(h, weight, targets)
        loss.backward()
        assert h.grad is not None and weight.grad is not None
        return loss.item(), h.grad, weight.grad

    plain, chunked = (partial(one, vocab_size=vocab_size) for one in (partial(summed_loss, cap=0.0), head_loss))
    forms: dict[str, Callable[..., Tensor]] = {"chunked": chunked}
    if missing_for_compile(device) is None:
        forms["chunked compiled"] = torch.compile(chunked, dynamic=False)
    loss, *gradients = run(plain)
    errors = {}
    for name, form in forms.items():
        other, *others = run(form)
        worst = max(map(difference, others, gradients))
        errors[name] = {"loss": abs(other - loss) / loss, "gradient": worst}
    figures = (f"{name} loss {one['loss']:.1e}, gradient {one['gradient']:.2%}" for name, one in errors.items())
    passed = all(one["loss"] < 1e-4 and one["gradient"] < 0.02 for one in errors.values())
    return {"passed": passed, "figure": f"from plain eager: {'; '.join(figures)}", "relative_errors": errors}


def packed_rows(T: int) -> np.ndarray:
    """doc_starts (3, T): a row of many short documents, a row of one, a row of a few."""
    generator, rows = np.random.default_rng(1), []
    for shortest, longest in ((1, T // 20), (T, T), (T // 12, T // 3)):
        row: list[int] = []
        while len(row) < T:
            row += [len(row)] * int(generator.integers(shortest, longest + 1))
        rows.append(row[:T])
    return np.array(rows)


def check_document_mask(device: torch.device) -> Found:
    """Logits, loss and gradient of packed rows in bfloat16 are those of the dense mask in float32.

    A GPU has a variable-length kernel for bfloat16; a CPU rehearses the check with the dense mask.
    """
    T, width = (512, 256) if device.type == "cuda" else (128, 64)
    varlen = has_varlen_kernel(device, torch.bfloat16, width // 4)
    if device.type == "cuda" and not varlen:
        return {"passed": None, "figure": "this GPU has no variable-length kernel"}
    generator = np.random.default_rng(2)
    ids = generator.integers(0, 1000, (3, T + 1))
    inputs, targets, table = to_device((ids[:, :-1].copy(), ids[:, 1:].copy(), packed_rows(T)), device)

    def run(kv_heads: int, dtype: str, documents: Tensor | None, *, compiled: bool = False) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = GPT(ModelConfig(1000, n_layer=2, n_head=4, n_kv_head=kv_heads, d_model=width, context=T))
        with torch.no_grad():
            for name, weight in model.named_parameters():  # at first attention is close to a mean and adds little
                if ".attention." in name:
                    weight.normal_(std=width**-0.5)
        model.to(device)
        compute = Compute.resolve(str(device), dtype=dtype)
        found = {}
        if compiled:
            strategies.compile_in_place(model, "none")
        else:
            with torch.no_grad(), compute.autocast():
                found["logits"] = model(inputs, documents=documents).float()
        micro_batches = MicroBatches(model, len(inputs), compute=compute, world=parallel.World())
        share = 1 / targets.numel()
        found["loss"] = micro_batches.backward(inputs, targets, loss_weight=share, seed=1, documents=documents)
        found["gradient"] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return found

    errors: dict[str, dict[str, float]] = {}
    unmasked = []
    for kv_heads in (4, 2):
        exact = run(kv_heads, "float32", table)
        unmasked.append(difference(run(kv_heads, "float32", None)["logits"], exact["logits"]))
        for compiled in (False, True) if missing_for_compile(device) is None else (False,):
            found = run(kv_heads, "bfloat16", table, compiled=compiled)
            name = f"{kv_heads} of 4 key/value heads{', compiled' if compiled else ''}"
            errors[name] = {key: difference(value, exact[key]) for key, value in found.items()}
    worst = {key: max(row.get(key, 0.0) for row in errors.values()) for key in ("logits", "loss", "gradient")}
    kernel = "variable-length kernel" if varlen else "dense mask in bfloat16 (the only form on this device)"
    figures = ", ".join(f"{key} {value:.2%}" for key, value in worst.items())
    return {
        "passed": max(worst.values()) < 0.02 and min(unmasked) > 0.1,
        "figure": f"{kernel}: {figures} from the dense mask in float32; without a mask {min(unmasked):.0%}",
        "kernel": "varlen" if varlen else "dense", "relative_errors": errors, "without_mask": min(unmasked),
    }  # fmt: skip


class Limited(nn.Module):
    """A model whose memory, in the rehearsal, holds only a few sequences."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        if len(ids) > ROWS_IN_MEMORY:
            raise torch.OutOfMemoryError(f"{len(ids)} sequences")
        return self.model(ids, **options)


def check_out_of_memory(device: torch.device, checkpoint: str) -> Found:
    """A micro-batch that is far too large is halved until it fits, and the gradient stays the same."""
    on_gpu = device.type == "cuda"
    model = reader.find(Path(checkpoint)).model(device).train()
    compute = Compute.resolve(str(device), dtype="float32")
    generator = torch.Generator().manual_seed(1)
    shape = (4096 if on_gpu else 32, model.config.context)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)

    def gradient(size: int) -> tuple[int, Tensor]:
        """The micro-batch that was used, and the gradient of the first matrix."""
        module = model if on_gpu else Limited(model)
        micro_batches = MicroBatches(module, size, compute=compute, world=parallel.World())
        model.zero_grad(set_to_none=True)
        micro_batches.backward(ids, ids, loss_weight=1 / ids.numel(), seed=1)
        return micro_batches.micro_batch_size, next(p.grad for p in model.parameters() if p.grad is not None).clone()

    if on_gpu:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(0.9, MEMORY / total), device)
    size, halved = gradient(len(ids))
    _, small = gradient(max(1, size // 2))
    error = difference(halved, small)
    figure = f"micro_batch {len(ids)} became {size}; relative difference of a gradient {error:.1e}"
    return {"passed": size < len(ids) and error < 1e-4, "figure": figure, "micro_batch": size, "relative_error": error}


def check_decoding(device: torch.device, checkpoint: str) -> Found:
    """Compiled decoding (on a GPU as a captured graph) gives the greedy tokens of eager decoding."""
    if missing := missing_for_compile(device):
        return {"passed": None, "figure": f"compilation needs {missing}"}
    tokens, greedy = 200 if device.type == "cuda" else 20, SamplingConfig(temperature=0)
    models = {form: load(checkpoint, device=str(device), compile=form == "compiled") for form in ("eager", "compiled")}
    first = models["eager"].generate(PROMPTS[0], max_new_tokens=tokens, sampling=greedy, top_logprobs=2)[0]
    texts: dict[str, list[int]] = {}
    speeds = {}
    for form, lm in models.items():
        lm.generate(PROMPTS[0], max_new_tokens=tokens, sampling=greedy)  # compiles
        began = time.perf_counter()
        texts[form] = lm.generate(PROMPTS[0], max_new_tokens=tokens, sampling=greedy)[0].tokens
        speeds[form] = round(len(texts[form]) / (time.perf_counter() - began), 1)
    best = [[p.probability for p in row] for row in first.alternatives]
    equal, figure = first_difference(texts["compiled"], texts["eager"], best)
    figure = "; ".join([figure, *(f"{form} {speed:,.0f} tokens/s" for form, speed in speeds.items())])
    return {"passed": equal, "figure": figure, "tokens_per_second": speeds}


def first_difference(ours: list[int], theirs: list[int], best: list[list[float]]) -> tuple[bool, str]:
    """Compares two greedy texts. They may part where the two best probabilities (T, 2) are equal up to rounding."""
    for place, (one, two) in enumerate(zip(ours, theirs, strict=False)):
        if one != two:
            gap = best[place][0] - best[place][1]
            return gap < 1e-5, f"differs from token {place}, where the two best probabilities are {gap:.1e} apart"
    return len(ours) == len(theirs), f"the same {min(len(ours), len(theirs))} greedy tokens"


def check_next_words(device: torch.device, checkpoint: str) -> Found:
    """Next tokens have the probabilities that they have on the CPU, and the bounds of next words agree."""
    here, there = (load(checkpoint, device=name) for name in (str(device), "cpu"))
    differences = []
    for prompt in PROMPTS:
        ours, theirs = ({one.id: one.probability for one in lm.next_tokens(prompt, top=20)} for lm in (here, there))
        differences += [abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys()]
        found, known = ({one.word: one for one in lm.next_words(prompt, top=10).words[:10]} for lm in (here, there))
        for one, two in ((found[word], known[word]) for word in found.keys() & known.keys()):
            differences.append(max(one.lower - two.upper, two.lower - one.upper, 0.0))
    figure = f"{len(differences)} tokens and words, largest difference of a probability {max(differences):.1e}"
    return {"passed": max(differences) <= 1e-4, "figure": figure, "largest_difference": max(differences)}


class Check(NamedTuple):
    """A check: a function of the device, and of the checkpoint if it needs one."""

    run: Callable[..., Found]
    needs_checkpoint: bool


CHECKS = {
    "loss": Check(check_loss, needs_checkpoint=False),
    "document_mask": Check(check_document_mask, needs_checkpoint=False),
    "out_of_memory": Check(check_out_of_memory, needs_checkpoint=True),
    "decoding": Check(check_decoding, needs_checkpoint=True),
    "next_words": Check(check_next_words, needs_checkpoint=True),
}


def main(cfg: NumericsConfig, overrides: cli.Overrides) -> None:
    assert cfg.check is not None  # validate() requires it
    device, check = resolve_device(cfg.device), CHECKS[cfg.check]
    found = check.run(device, cfg.checkpoint) if check.needs_checkpoint else check.run(device)
    print(found["figure"])
    print(json.dumps(found))


if __name__ == "__main__":
    cli.run(main, NumericsConfig, name="check_numerics")
