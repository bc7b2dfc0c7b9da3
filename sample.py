"""A checkpoint's path in, text or the table of next tokens out; load(checkpoint) does the same for Python."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf import cli, display
from data.outputs import Outputs
from data.prompts import Prompt, PromptFile
from data.tokenizer import load as load_tokenizer
from model import InputError, checkpoint
from model.bulk import Request, continue_batch, reader
from model.device import DTYPES, Compute, keep_freed_memory
from model.language_model import LanguageModel
from model.sampling import SamplingConfig


@dataclass
class SampleConfig:
    """The keys of `python sample.py`."""

    checkpoint: str | None = None  # a run directory, RUN/best or one step directory
    mode: str = "text"  # text | next_token
    prompt: str | None = None
    prompt_file: str | None = None  # without prompt and prompt_file: standard input
    prompts: str | None = None  # a file with a prompt a line, {"prompt": ...}: continue all of them ...
    outputs: str | None = None  # ... and write a result a line there
    batch_size: int = 64  # prompts continued together
    num_samples: int = 1
    max_new_tokens: int = 200
    temperature: float = 1.0  # 0: always the most probable token
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1
    top: int = 20  # next_token: rows of the table
    json: str | None = None  # write the result there
    plot: str | None = None  # next_token: draw the table there (PNG)
    device: str = "auto"
    dtype: str = "float32"  # float32 is exact; bfloat16 faster where the hardware has it
    debug: bool = False

    def problems(self) -> list[str]:
        found = [] if self.checkpoint else ["checkpoint is required: a run directory such as checkpoint=out/first"]
        if self.mode not in ("text", "next_token"):
            found.append(f"mode={self.mode!r} is not one of text, next_token")
        for name in ("num_samples", "max_new_tokens", "top", "batch_size"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if self.prompt is not None and self.prompt_file is not None:
            found.append("prompt and prompt_file are both given; choose one")
        if (self.prompts is None) != (self.outputs is None):
            found.append("prompts=FILE and outputs=FILE are given together or not at all")
        if self.plot is not None and self.mode == "text":
            found.append(f"plot={self.plot} draws a table of next tokens; add mode=next_token")
        if self.dtype not in ("auto", *DTYPES):
            found.append(f"dtype={self.dtype!r} is not one of auto, {', '.join(DTYPES)}")
        return found + self.sampling().problems()

    def sampling(self) -> SamplingConfig:
        return SamplingConfig(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def load(path: str | Path, *, device: str = "auto", dtype: str = "float32") -> LanguageModel:
    """Opens a checkpoint: a run directory (its newest intact step), RUN/best, or one step directory.

    Needs nothing beside it. Raises InputError for a missing or damaged checkpoint.
    """
    found = checkpoint.find(Path(path).expanduser())
    compute = Compute.resolve(device, dtype=dtype)
    tokenizer = load_tokenizer(found.directory / "tokenizer")
    found.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    return LanguageModel(found.model(compute.device), tokenizer, compute, found.directory)


def read_prompt(cfg: SampleConfig) -> str:
    """The prompt byte for byte; of a file or standard input, without the last line's newline."""
    if cfg.prompt is not None:
        return cfg.prompt
    if cfg.prompt_file is None and sys.stdin.isatty():
        return ""
    try:
        raw = sys.stdin.buffer.read() if cfg.prompt_file is None else Path(cfg.prompt_file).read_bytes()
        return raw.decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise InputError(f"prompt_file={cfg.prompt_file}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        place = "standard input" if cfg.prompt_file is None else f"prompt_file={cfg.prompt_file}"
        raise InputError(f"{place} is not UTF-8 at byte {error.start}; convert it (iconv)") from None


def write_result(path: str | None, results: list[dict[str, Any]]) -> None:
    """JSON: an object, or a list where there are several."""
    if path is not None:
        result = results if len(results) > 1 else results[0]
        Path(path).write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def show_next_tokens(cfg: SampleConfig, lm: LanguageModel, prompt: str) -> None:
    tokens = [asdict(token) for token in lm.next_tokens(prompt, top=cfg.top, sampling=cfg.sampling())]
    display.token_table(tokens, title=f"Next token after {prompt[-60:]!r}")
    write_result(cfg.json, [{"prompt": prompt, "tokens": tokens}])
    if cfg.plot is not None:
        display.plot_tokens(tokens, cfg.plot, prompt=prompt)


def show_text(cfg: SampleConfig, lm: LanguageModel, prompt: str) -> None:
    if cfg.num_samples == 1 and cfg.json is None:
        print(prompt, end="", flush=True)
        pieces = lm.stream(prompt, max_new_tokens=cfg.max_new_tokens, sampling=cfg.sampling(), seed=cfg.seed)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    results = lm.generate(
        [prompt] * cfg.num_samples, max_new_tokens=cfg.max_new_tokens, sampling=cfg.sampling(), seed=cfg.seed
    )
    for number, result in enumerate(results, start=1):
        if cfg.num_samples > 1:
            mean = sum(result.log_probabilities) / max(1, len(result.tokens)) / math.log(2)
            print(f"--- sample {number} of {cfg.num_samples}: {len(result.tokens)} tokens, {-mean:.2f} bits each")
        print(prompt + result.text)
    fields = ("prompt", "text", "tokens", "log_probabilities")
    write_result(cfg.json, [{name: getattr(result, name) for name in fields} for result in results])


def run_bulk(cfg: SampleConfig, lm: LanguageModel) -> None:
    """Continues the prompts of a file; the same command again goes on where it was stopped, be it by a kill."""
    keep_freed_memory()
    read = reader(lm, Request(cfg.sampling(), cfg.max_new_tokens, cfg.seed, cfg.num_samples))
    prompts = PromptFile(
        cfg.prompts or "",
        read=read,
        tokenizer=lm.tokenizer,
        context=lm.model.config.context,
        batch_size=cfg.batch_size,
        reserved=RESULT,
    )
    if prompts.unknown is not None:
        print(f"note: the tokenizer does not know all of {cfg.prompts}:{prompts.unknown}", file=sys.stderr)
    weights = json.loads((lm.directory / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    about = {
        **{"prompts": f"sha256 {prompts.sha256[:16]}", "checkpoint": f"{lm.directory.name} sha256 {weights[:16]}"},
        **{name: getattr(cfg, name) for name in ("mode", "batch_size", "max_new_tokens", "seed", "num_samples")},
        **asdict(cfg.sampling()),
        **{"device": lm.compute.device.type, "dtype": str(lm.compute.dtype).removeprefix("torch.")},
    }
    total, began, tokens = len(prompts.order), time.perf_counter(), 0
    with Outputs(cfg.outputs or "", about=about, sizes=prompts.sizes, order=prompts.order) as outputs:
        if outputs.finished:
            print(f"{cfg.outputs} is complete: {total:,} results; nothing to do")
            return
        earlier = outputs.rows
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it too raises KeyboardInterrupt
        try:
            with display.Progress(total, start=earlier, unit="prompt", every=5, file=sys.stderr) as progress:
                for number in range(outputs.done, len(prompts)):
                    results = continue_prompts(lm, read, prompts.batch(number), rows=prompts.shape(number))
                    outputs.add(results)
                    tokens += sum(len(result["tokens"]) for result in results)
                    progress.update(outputs.rows, tokens_per_second=tokens / (time.perf_counter() - began))
                outputs.publish()
        except KeyboardInterrupt:
            print(f"stopped after {outputs.rows:,} of {total:,} results; the same command goes on with the others")
            return
        finally:
            signal.signal(signal.SIGTERM, before)
    seconds = time.perf_counter() - began
    again = f" ({earlier:,} of them from before)" if earlier else ""
    speed = f"{tokens:,} tokens in {display.duration(seconds)}, {tokens / seconds:,.0f} tokens/s"
    print(f"{total:,} results{again}, {speed}: {cfg.outputs}")


RESULT = ("index", "sample", "text", "tokens", "log_probabilities", "ended")  # beside the fields of the prompt's line


def continue_prompts(
    lm: LanguageModel, read: Callable[[dict[str, Any]], Request], batch: list[Prompt], *, rows: int
) -> list[dict[str, Any]]:
    """What the outputs file says about each prompt of a batch."""
    ids = [lm.encode(prompt.text) for prompt in batch]
    requests = [read(prompt.fields) for prompt in batch]
    indices = [prompt.index + (prompt.sample << 32) for prompt in batch]
    results = []
    for prompt, request, made in zip(
        batch, requests, continue_batch(lm, ids, requests, indices=indices, rows=rows), strict=True
    ):
        result = {"index": prompt.index, "sample": prompt.sample, "prompt": prompt.text, **prompt.fields}
        if request.num_samples == 1:
            del result["sample"]
        logs = [round(value, 6) for value in made.log_probabilities]  # float32 knows no more
        result |= {"text": made.text, "tokens": made.tokens, "log_probabilities": logs, "ended": made.ended}
        results.append(result)
    return results


def main(cfg: SampleConfig, overrides: cli.Overrides) -> None:
    lm = load(cfg.checkpoint or "", device=cfg.device, dtype=cfg.dtype)
    if cfg.prompts is not None:
        run_bulk(cfg, lm)
        return
    prompt = read_prompt(cfg)
    if (read := lm.tokenizer.decode(lm.tokenizer.encode(prompt))) != prompt:
        print(f"note: the tokenizer does not know all of the prompt; the model reads {read!r}", file=sys.stderr)
    show = show_next_tokens if cfg.mode == "next_token" else show_text
    show(cfg, lm, prompt)


if __name__ == "__main__":
    cli.run(main, SampleConfig, name="sample")
