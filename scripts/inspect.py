"""Looks inside a checkpoint: operations, attention, logit lens, heads; and what its text copies from training text."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf import cli
from conf.display import inside, inside_plots
from data.evaluation import copies
from data.evaluation.suffix_array import Index
from data.preparation.shards import Split, find_prepared, open_split
from data.tokenizers.build import load as load_tokenizer
from data.tokenizers.unknown import unknown_in, unknown_note
from model import InputError
from model.checkpoints import reader
from model.device import Compute, keep_freed_memory
from model.inference.sampling import SamplingConfig
from model.inspection.heads import ablate_heads, head_scores
from model.inspection.rows import attention_rows, lens_rows, token_rows
from model.inspection.trace import trace
from model.language_model import LanguageModel
from model.planning.plan import flops_per_token
from model.threads import share_cpus

PATH, TEXT, OUTPUT = {"kind": "path"}, {"kind": "text"}, {"kind": "output"}
MODES = ("all", "trace", "attention", "lens", "heads", "copies")
READS_PROMPT = {"needs": ("mode=all|trace|attention|lens|copies",)}
ATTENTION, LENS = {"needs": ("mode=all|attention",)}, {"needs": ("mode=all|lens",)}
HEADS, COPIES = {"needs": ("mode=all|heads",)}, {"needs": ("mode=copies",)}
WIDTH = 64  # tokens of the windows in which heads are ablated
FEWEST_HUMAN = 8  # windows of held-out text that a single text is compared with
MOST_INDEXED = 200_000_000  # tokens: 14 GB while the index is built
MOST_TOKENS = 1024  # of a prompt: attention weights grow with its square

Result = dict[str, Any]


@dataclass
class InspectConfig:
    """The keys of `python -m scripts.inspect`."""

    checkpoint: str | None = field(default=None, metadata=PATH)  # a run directory, RUN/best or a step
    mode: str = "all"  # all (all but copies) | trace | attention | lens | heads | copies
    # the text to look at; copies: samples continue it, by default each another piece of held-out text
    prompt: str | None = field(default=None, metadata=TEXT | READS_PROMPT)
    layer: int | None = field(default=None, metadata={"needs": ("mode=all|attention|trace",)})  # show only this block
    head: int | None = field(default=None, metadata=ATTENTION | {"needs": ("mode=all|attention", "layer!=null")})
    position: int | None = field(default=None, metadata={"needs": ("mode=all|attention|lens",)})  # null: the last token
    top: int = field(default=5, metadata={"needs": ("mode=all|attention|lens|copies",)})  # rows or columns to show
    # heads: the text whose loss is measured, by default held-out text; copies: the text to look up instead of samples
    text: str | None = field(default=None, metadata=TEXT | {"needs": ("mode=all|heads|copies",)})
    text_file: str | None = field(default=None, metadata=PATH | {"needs": ("mode=all|heads|copies",)})
    ablation: str = field(default="mean", metadata=HEADS)  # mean | zero: what a head's output is replaced by
    windows: int = field(default=12, metadata=HEADS)  # of text, 64 tokens each
    num_samples: int = field(default=8, metadata=COPIES)
    max_new_tokens: int = field(default=200, metadata=COPIES)
    temperature: float = field(default=1.0, metadata=COPIES)
    min_tokens: int = field(default=8, metadata=COPIES)  # the shortest span that is reported
    rare: int = field(default=2, metadata=COPIES)  # a span is rare if the training text has it at most this often
    datasets: str = field(default="datasets", metadata=PATH | {"needs": ("mode=all|heads|copies",)})
    seed: int = field(default=1, metadata={"needs": ("mode=all|heads|copies",)})
    device: str = "auto"
    plot: str | None = field(default=None, metadata=OUTPUT)
    html: str | None = field(default=None, metadata=OUTPUT)  # one page with everything, which needs no network
    json: str | None = field(default=None, metadata=OUTPUT)
    debug: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return MODES[1:-1] if self.mode == "all" else (self.mode,)

    def validate(self) -> list[str]:
        found = [] if self.mode in MODES else [f"mode={self.mode!r} is not one of {', '.join(MODES)}"]
        if self.checkpoint is None:
            found.append("checkpoint is required: a run directory such as checkpoint=out/quickstart/best")
        if self.prompt is None and self.mode in ("all", "trace", "attention", "lens"):
            found.append('prompt is required: the text to look at, such as prompt="The Duke of"')
        if self.mode == "trace" and self.plot is not None:
            found.append("plot: mode=trace has no plot; leave it out or use mode=attention|lens|heads|copies|all")
        if self.text is not None and self.text_file is not None:
            found.append("give text= or text_file=, not both")
        if self.ablation not in ("mean", "zero"):
            found.append(f"ablation={self.ablation!r} is not one of mean, zero")
        limits = dict.fromkeys(("top", "num_samples", "max_new_tokens", "min_tokens", "rare"), 10**6)
        for name, limit in (limits | {"windows": 1000}).items():  # all windows are in memory, once for each block
            if not 1 <= getattr(self, name) <= limit:
                found.append(f"{name}={getattr(self, name)} must be between 1 and {limit:,}")
        if not 0 <= self.temperature < math.inf:
            found.append(f"temperature={self.temperature} must be at least 0")
        return found

    def given_text(self) -> str | None:
        return cli.read_text("text_file", self.text_file) if self.text_file is not None else self.text


def load(cfg: InspectConfig) -> LanguageModel:
    """Opens the checkpoint with the network as trained: plain linear layers in float32."""
    found = reader.find(Path(cfg.checkpoint or "").expanduser())
    compute = Compute.for_decoding(cfg.device)
    tokenizer = load_tokenizer(found.directory / "tokenizer")
    found.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    return LanguageModel(found.model(compute.device), tokenizer, compute, found.directory)


def prompt_ids(cfg: InspectConfig, lm: LanguageModel) -> list[int]:
    """The prompt's ids. Raises InputError if they, or the chosen layer, head or position, do not exist."""
    ids, most = lm.encode(cfg.prompt or ""), min(lm.model.config.context, MOST_TOKENS)
    if unknown := unknown_in([cfg.prompt or ""], lm.tokenizer):
        print(f"note: {unknown_note(unknown, 'the prompt')}")
    if len(ids) > most:
        raise InputError(f"the prompt has {len(ids):,} tokens; at most {most:,} can be inspected: give only its end")
    limits = {"layer": lm.model.config.n_layer, "head": lm.model.config.n_head, "position": len(ids)}
    for name, limit in limits.items():
        if (value := getattr(cfg, name)) is not None and not 0 <= value < limit:
            raise InputError(f"{name}={value} must be between 0 and {limit - 1}")
    return ids


def trained_on(cfg: InspectConfig, lm: LanguageModel, split: str) -> Split:
    """A split of the corpus that the checkpoint was trained on. Raises InputError if it is not there."""
    manifest = json.loads((lm.directory / "manifest.json").read_text(encoding="utf-8"))
    found = find_prepared(cfg.datasets, str(manifest.get("data_fingerprint")))
    if found is None:
        raise InputError(
            f"datasets={cfg.datasets} does not contain the prepared corpus of {lm.directory.parent} (a fine-tuned run "
            "has none); give datasets="
        )
    return open_split(found, split)


def look_at_trace(cfg: InspectConfig, lm: LanguageModel, ids: list[int]) -> Result:
    operations = [asdict(op) for op in trace(lm.model, torch.tensor([ids], device=lm.compute.device))]
    planned = flops_per_token(lm.model, context=len(ids)) * len(ids) // 3  # the other two thirds: a backward pass
    totals = {key: sum(op[key] for op in operations) for key in ("flops", "n_bytes")}
    return {"operations": operations, **totals, "planned_flops": planned}


def look_at_attention(cfg: InspectConfig, lm: LanguageModel, ids: list[int]) -> list[Any]:
    return attention_rows(lm.model, ids)


def look_at_lens(cfg: InspectConfig, lm: LanguageModel, ids: list[int]) -> Result:
    return lens_rows(lm.model, ids, top=cfg.top, text_of=lm.token_text)


def ablation_windows(cfg: InspectConfig, lm: LanguageModel) -> torch.Tensor | None:
    """Text to predict without each head, (N, T + 1) ids; None with a note if there is none."""
    given = cfg.given_text()
    if given is not None:
        ids = [*lm.encode(()), *lm.tokenizer.encode(given)]
        width = min(WIDTH, lm.model.config.context, max(8, len(ids) // FEWEST_HUMAN), len(ids) - 1)
        if width < 1:
            raise InputError("text= is empty: give at least one character to predict")
        count = min(cfg.windows, (len(ids) - 1) // width)
        pieces = [ids[n * width : n * width + width + 1] for n in range(count)]
    else:
        try:
            split = trained_on(cfg, lm, "val")
        except InputError as error:
            print(f"note: the loss without each head is not measured: {error} or text=")
            return None
        width = min(WIDTH, lm.model.config.context, split.n_tokens - 1)
        starts = np.linspace(0, split.n_tokens - 1 - width, cfg.windows).astype(int)
        pieces = [split.tokens[start : start + width + 1].tolist() for start in dict.fromkeys(starts.tolist())]
    return torch.tensor(pieces, device=lm.compute.device)


def look_at_heads(cfg: InspectConfig, lm: LanguageModel, ids: list[int]) -> Result:
    special = list(lm.tokenizer.special_tokens.values())
    scores = head_scores(lm.model, start=lm.encode(())[0], exclude=special, seed=cfg.seed)
    names = tuple(scores.chance)
    shape = range(lm.model.config.n_layer), range(lm.model.config.n_head)
    rows: list[Result] = [
        {"layer": i, "head": j} | {name: float(getattr(scores, name)[i, j]) for name in names}
        for i in shape[0] for j in shape[1]
    ]  # fmt: skip
    found: Result = {"rows": rows, "chance": scores.chance}
    if (windows := ablation_windows(cfg, lm)) is not None:
        ablation = ablate_heads(lm.model, windows, kind=cfg.ablation, seed=cfg.seed)

        def figures(layer: int, head: int) -> Result:
            figures = {name: float(getattr(ablation, name)[layer, head]) for name in ("increase", "low", "high")}
            return {name: None if math.isnan(value) else value for name, value in figures.items()}

        for row in rows:
            row |= figures(row["layer"], row["head"])
        found["layers"] = [{"layer": layer} | figures(layer, -1) for layer in shape[0]]
        found |= {"ablation": cfg.ablation, "loss": ablation.loss, "tokens": ablation.tokens}
        found["windows"] = ablation.windows
    return found


def look_at_copies(cfg: InspectConfig, lm: LanguageModel) -> Result:
    """Spans of samples, or of a given text, in the training text, beside those of held-out human text."""
    train = trained_on(cfg, lm, "train")
    if train.n_tokens > MOST_INDEXED:
        raise InputError(f"the training text has {train.n_tokens:,} tokens; at most {MOST_INDEXED:,} can be indexed")
    val = trained_on(cfg, lm, "val") if (train.directory / "val_00000.bin").exists() else None
    index = Index(train.tokens[:])
    texts, prompts, human = texts_to_look_up(cfg, lm, val)
    how: dict[str, Any] = {"min_tokens": cfg.min_tokens, "rare_count": cfg.rare}
    found = [copies.find_copies(index, np.array(text, np.uint32), train, **how) for text in texts]
    rows = []
    for text, prompt, one in zip(texts, prompts, found, strict=True):
        spans = [asdict(s) | {"text": lm.tokenizer.decode(text[s.start : s.start + s.length])} for s in one.spans]
        shown = token_rows(text, lm.token_text)
        rows.append({"prompt": prompt, "tokens": shown, "spans": spans, "longest": one.longest})
    result: Result = {"texts": rows, "statistics": copies.statistics(found, seed=cfg.seed), "human": None}
    result |= {"min_tokens": cfg.min_tokens, "rare": cfg.rare, "indexed_tokens": train.n_tokens}
    if human:
        read = [copies.find_copies(index, window, **how) for window in human]
        result["human"] = copies.statistics(read, seed=cfg.seed)
        if len(found) > 1 and len(read) > 1:
            result["difference"] = copies.compared(found, read, seed=cfg.seed)
    return result


def texts_to_look_up(
    cfg: InspectConfig, lm: LanguageModel, val: Split | None
) -> tuple[list[list[int]], list[str], list[np.ndarray]]:
    """Returns the texts as ids, the prompt of each, and as long pieces of held-out human text."""
    given = cfg.given_text()
    if given is not None:
        text = lm.tokenizer.encode(given)
        if not text:
            raise InputError("text= is empty: give the text to look up")
        human = copies.held_out_windows(val, [len(text)] * FEWEST_HUMAN) if val else []
        return [text], [""], human
    n_prompt = min(32, lm.model.config.context // 4)
    sizes = [n_prompt + cfg.max_new_tokens] * cfg.num_samples
    windows = copies.held_out_windows(val, sizes) if val else []
    if cfg.prompt is None and len(windows) == cfg.num_samples:
        prompts = [window[:n_prompt].tolist() for window in windows]
    else:
        prompts = [lm.encode(cfg.prompt or "")] * cfg.num_samples
    sampling = SamplingConfig(temperature=cfg.temperature)
    samples = lm.generate(prompts, max_new_tokens=cfg.max_new_tokens, sampling=sampling, seed=cfg.seed)
    # Encoded as the training text was, which may take a few more tokens than were drawn.
    texts = [lm.tokenizer.encode(sample.text, continued=True)[: cfg.max_new_tokens] for sample in samples]
    human = [window[n_prompt:][: len(text)] for window, text in zip(windows, texts, strict=False)]
    start = lm.encode(())  # no part of the text that is shown
    shown = [lm.tokenizer.decode(prompt[1:] if prompt[:1] == start else prompt) for prompt in prompts]
    kept = [number for number, text in enumerate(texts) if text]
    if not kept:
        raise InputError("every sample is empty: the model ends the text at once; give another prompt= or seed=")
    return [texts[n] for n in kept], [shown[n] for n in kept], [window for window in human if len(window)]


LOOK = {"trace": look_at_trace, "attention": look_at_attention, "lens": look_at_lens, "heads": look_at_heads}


def main(cfg: InspectConfig, overrides: cli.Overrides) -> None:
    keep_freed_memory()
    lm = load(cfg)
    result: Result = {"checkpoint": os.fspath(lm.directory), "prompt": cfg.prompt}
    with share_cpus(lm.compute.device):
        if cfg.mode == "copies":
            result["copies"] = look_at_copies(cfg, lm)
        else:
            ids = prompt_ids(cfg, lm)
            result["tokens"] = token_rows(ids, lm.token_text)
            result |= {part: LOOK[part](cfg, lm, ids) for part in cfg.parts}
    if cfg.json is not None:
        Path(cfg.json).write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
    if cfg.html is not None:
        inside.write_page(cfg.html, result)
    if cfg.plot is not None:
        inside_plots.plot(cfg.plot, result, layer=cfg.layer, head=cfg.head)
    inside.show(result, layer=cfg.layer, head=cfg.head, position=cfg.position, top=cfg.top)


if __name__ == "__main__":
    cli.run(main, InspectConfig, name="inspect")
