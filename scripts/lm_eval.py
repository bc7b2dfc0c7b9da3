"""Runs tasks of lm-eval on a checkpoint. Local tasks need no network; extra: pip install -e '.[lm-eval]'."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf import cli
from model import InputError
from model.inference.sampling import SamplingConfig
from model.inference.score import encode_pair, log_probabilities, move_trailing_spaces
from model.sample_settings import as_list
from sample import LanguageModel, load

PATH = {"kind": "path"}
NEW_TOKENS = 256  # of an answer whose task does not say
ROWS = 32  # prompts that are continued together


@dataclass
class LmEvalConfig:
    """The keys of `python -m scripts.lm_eval`."""

    checkpoint: str | None = field(default=None, metadata=PATH)
    tasks: Any = field(default=None, metadata={"kind": "text", "list": True})  # names of tasks
    include_path: str | None = field(default=None, metadata=PATH)  # a folder with the yaml files of local tasks
    shots: int | None = None  # examples before each question; null: as the task says
    limit: int | None = None  # questions of each task; null: all
    network: bool = False  # may download data sets
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 1  # of the choice of shots
    json: str | None = field(default=None, metadata={"kind": "output"})  # results, and each question with its answer
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.checkpoint else ["checkpoint is required: a run directory such as checkpoint=out/first"]
        if not as_list(self.tasks):
            found.append("tasks is required: the name of a task of lm-eval, or of one in include_path=FOLDER")
        if (self.shots or 0) < 0 or (self.limit or 1) < 1:
            found.append(f"shots={self.shots} must be at least 0, and limit={self.limit} at least 1")
        return found


def log_likelihoods(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Returns log p(continuation | context), nats, of each pair, and whether greedy decoding would write it.

    An empty context is the start of a document; a long one is truncated on the left. As sample.py mode=score does,
    spaces at the end of a context move to the continuation.
    """
    encoded = [encode_pair(lm.tokenizer, *move_trailing_spaces(*pair)) for pair in pairs]
    asked = [number for number, (_, ids) in enumerate(encoded) if ids]
    figures = log_probabilities(lm.model, [encoded[number] for number in asked], compute=lm.compute)
    found = [(0.0, True)] * len(pairs)  # of an empty continuation
    for number, row in zip(asked, figures, strict=True):
        found[number] = math.fsum(figure.log_probability for figure in row), all(figure.greedy for figure in row)
    return found


def text_log_likelihoods(lm: LanguageModel, texts: Sequence[str]) -> list[float]:
    """Returns log p, nats, of whole texts after the token that starts a stream.

    Each window shares one token with the next. As lm-eval defines it, the last window of a text is as long as the
    others and scores only what is left.
    """
    context, windows, owner = lm.model.config.context, [], []
    for number, text in enumerate(texts):
        ids = [*lm.encode(()), *lm.tokenizer.encode(text)]
        for start in range(1, len(ids), context):
            stop = min(len(ids), start + context)
            windows.append((ids[max(0, stop - context - 1) : start], ids[start:stop]))
            owner.append(number)
    totals: list[list[float]] = [[] for _ in texts]
    for number, row in zip(owner, log_probabilities(lm.model, windows, compute=lm.compute), strict=True):
        totals[number] += [figure.log_probability for figure in row]
    return [math.fsum(total) for total in totals]


def answers(lm: LanguageModel, requests: Sequence[tuple[str, dict[str, Any]]], *, seed: int) -> list[str]:
    """Returns what the model writes after each context, without the strings that end it.

    A request's settings are lm-eval's: `until`, `max_gen_toks` and, with do_sample, `temperature`, `top_p`, `top_k`.
    """
    found = [""] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: (repr(requests[i][1]), len(requests[i][0])))
    while order:
        settings = requests[order[0]][1]
        rows = [i for i in order[:ROWS] if requests[i][1] == settings]
        order = order[len(rows) :]
        length = int(settings.get("max_gen_toks", settings.get("max_new_tokens", NEW_TOKENS)))
        chosen = ("temperature", "top_p", "top_k") if settings.get("do_sample") else ()
        how = {"temperature": 0.0 if not chosen else 1.0} | {key: settings[key] for key in chosen if key in settings}
        sampling = SamplingConfig(**how, stop=tuple(filter(None, as_list(settings.get("until")))))
        context = lm.model.config.context
        prompts = [lm.encode(requests[i][0])[-max(context - length, context // 2, 1) :] for i in rows]
        written = lm.generate(prompts, max_new_tokens=length, sampling=sampling, seed=seed)
        for i, answer in zip(rows, written, strict=True):
            found[i] = answer.text
    return found


def adapter(lm: LanguageModel, *, seed: int) -> Any:
    """Returns the model as lm-eval's LM. Raises InputError if lm-eval is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise InputError(f"lm-eval cannot be imported ({error}); run: pip install -e '.[lm-eval]'") from None

    class Adapter(LM):
        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            return log_likelihoods(lm, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return text_log_likelihoods(lm, [request.args[0] for request in requests])

        def generate_until(self, requests: Any) -> list[str]:
            return answers(lm, [request.args for request in requests], seed=seed)

    return Adapter()


def evaluate(cfg: LmEvalConfig, lm: LanguageModel) -> dict[str, Any]:
    """Returns lm-eval's results, with each question under `samples`. Raises InputError for unknown tasks."""
    if not cfg.network:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read when lm_eval is imported
    model = adapter(lm, seed=cfg.seed)
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=cfg.include_path)
    if unknown := [name for name in as_list(cfg.tasks) if name not in tasks.all_tasks]:
        raise InputError(f"tasks={unknown}: lm-eval has none of this name; name the folder of its yaml: include_path=")
    return lm_eval.simple_evaluate(
        model=model, tasks=as_list(cfg.tasks), task_manager=tasks, num_fewshot=cfg.shots, limit=cfg.limit,
        fewshot_random_seed=cfg.seed, bootstrap_iters=0,
    )  # fmt: skip


def main(cfg: LmEvalConfig, overrides: cli.Overrides) -> None:
    results = evaluate(cfg, load(cfg.checkpoint or "", device=cfg.device, dtype=cfg.dtype))
    from lm_eval.utils import make_table

    print(make_table(results))
    if cfg.json is not None:
        kept = {key: results[key] for key in ("results", "versions", "n-shot", "samples") if key in results}
        Path(cfg.json).write_text(json.dumps(kept, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, LmEvalConfig, name="lm_eval")
