"""Runs the programs as a user would: in this process if that is enough, else in their own."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conf import cli
from data.preparation.shards import open_split

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    "train": ("train", "TrainConfig"),
    "finetune": ("finetune", "FinetuneConfig"),
    "sample": ("sample", "MODES"),
    "prepare": ("scripts.prepare", "PrepareConfig"),
    "evaluate": ("scripts.evaluate", "EvaluateConfig"),
    "lm_eval": ("scripts.lm_eval", "LmEvalConfig"),
    "ablations": ("scripts.ablations", "AblationsConfig"),
    "speeches": ("scripts.speeches", "SpeechesConfig"),
    "tradeoff": ("scripts.tradeoff", "TradeoffConfig"),
    "topics": ("scripts.topics", "TopicsConfig"),
    "languages": ("scripts.languages", "LanguagesConfig"),
    "faults": ("scripts.faults", "FaultsConfig"),
    "check_device": ("scripts.check_device", "CheckConfig"),
    "export": ("scripts.export", "ExportConfig"),
    "import_model": ("scripts.import_model", "ImportConfig"),
    "cloze": ("scripts.cloze", "ClozeConfig"),
    "serve": ("scripts.serve", "ServeConfig"),
    "tokenize": ("scripts.tokenizer", "ToolConfig"),
    "inspect": ("scripts.inspect", "InspectConfig"),
}
NANO = [  # the smallest thing that is still a model
    "model.n_layer=1", "model.n_head=2", "model.d_model=32", "model.context=32", "tokenizer=char", "device=cpu",
    "dtype=float32", "batch_size=4",
]  # fmt: skip


@dataclass
class Ended:
    status: int
    out: str
    err: str


def run(name: str, *arguments: str) -> Ended:
    """Runs `python NAME.py ARGUMENTS` in this process."""
    module_name, schema = CONFIGS[name]
    module = importlib.import_module(module_name)
    after_sweep = getattr(module, "show_sweep", None)
    return capture(
        lambda: cli.run(module.main, getattr(module, schema), name=name, argv=list(arguments), after_sweep=after_sweep)
    )


def capture(program: Callable[[], object]) -> Ended:
    """Runs a function that ends as a program does; returns its output and exit status."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program()
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return Ended(status, out.getvalue(), err.getvalue())


def ok(name: str, *arguments: str) -> str:
    """Runs a program that must succeed. Returns what it printed."""
    ended = run(name, *arguments)
    assert ended.status == 0, ended.err
    return ended.out


def start(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Starts `python COMMAND` in a new process, with the clone on its path."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd or ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 180) -> Ended:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, out, err)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """The content of all files in a folder. Prepared corpora may come to be; they are only checked to be complete."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.partition("/")[0] != "datasets":
            found[name] = path.read_bytes() if path.is_file() else None
    for path in (folder / "datasets").glob("*"):
        assert path.name.startswith(".lock-") or open_split(path, "train", verify=True), path
    return found


def one_line(ended: Ended) -> str:
    assert ended.status == 2, (ended.status, ended.err)
    assert "Traceback" not in ended.out + ended.err
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
