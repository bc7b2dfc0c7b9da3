"""run(): exit statuses, --help, --cfg and --multirun."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf import cli
from conf.cli.help import comments_in, comments_of
from tests.conf.cli.schema import ROOT, Optimizer, Train, run


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    from data import InputError as DataError
    from model import InputError as ModelError

    class MarkedError(Exception):
        user_mistake = True

    def fail(error: Exception) -> Callable[[Any, cli.Overrides], int | None]:
        def main(config: Any, overrides: cli.Overrides) -> int | None:
            raise error

        return main

    assert run(lambda config, overrides: None) == 0
    assert run(lambda config, overrides: 3) == 3
    for error in (
        *(DataError("notes.txt:3: no"), ModelError("notes.txt:3: no"), MarkedError("notes.txt:3: no")),
        FileNotFoundError(2, "no", "notes.txt:3"),
    ):
        assert run(fail(error)) == 2
        assert capsys.readouterr().err == "error: notes.txt:3: no\n"
    assert run(fail(DataError("no")), "debug=true") == 2
    assert "Traceback" in capsys.readouterr().err

    class InputError(ValueError):  # the name alone says nothing
        pass

    for bug in (ValueError("bug"), OSError("no file"), KeyError("x"), InputError("x")):  # Python prints it, status 1
        with pytest.raises(type(bug)):
            cli.run(fail(bug), Train, name="train", argv=[])


def test_validation_reports_all_problems_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config, overrides: 0, "steps=0", "optimizer.learning_rate=0", "model.dropout=2") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("=")[0] for line in lines] == [
        *("error: steps", "error: model.dropout", "error: optimizer.learning_rate")
    ]


def test_help_lists_keys_under_headings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Train, "validate", lambda self: ["run_dir is required"])  # --help validates nothing
    assert run(lambda config, overrides: 1, "--help") == 0
    text = capsys.readouterr().out
    sections = {part.splitlines()[0]: part for part in text.split("\n\n")}
    assert [name for name in sections if name.endswith(":")][:2] == ["run:", "tokenizer:"]
    assert text.rstrip().rfind("\n\nadvanced:") == text.rfind("\n\n")  # last
    lines = [line.split() for line in sections["run:"].splitlines()]
    assert ["steps=1000", "optimizer", "steps"] in lines and ["seed=1"] in lines
    assert ["run_dir=null", "where", "the", "run", "is", "written"] in lines
    assert "wandb.project" in sections["evaluation and saving:"] and "optimizer.eps" in sections["advanced:"]
    assert "gpt2_1558m" in text and "longest sequence" in sections["model:"]


def test_comments_belong_to_the_field_on_their_lines_or_below() -> None:
    beside = "class A:\n    a: int = 1  # one\n    # other\n    b: int = f(\n        2,  # x\n    )\n    c: int = 3\n"
    assert comments_in(beside) == {"a": "one", "b": "x", "c": ""}
    assert comments_in("class A:\n    # two\n    # lines\n    b: int = 2\n") == {"b": "two lines"}


@dataclass
class Drawing:
    plot: str | None = field(default=None, metadata={"kind": "output"})
    json: str | None = field(default=None, metadata={"kind": "output"})


def test_the_files_that_were_written_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(config: Drawing, overrides: cli.Overrides) -> None:
        Path(config.plot or "").touch()

    files = [f"{name}={tmp_path / name}" for name in ("plot", "json")]
    assert run(draw, *files, schema=Drawing, name="none") == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 'plot'}\n"  # json= was not


@dataclass
class Slow(Train):
    steps: int = 9


def test_a_new_default_keeps_the_comment() -> None:
    assert comments_of(Slow)["steps"] == comments_of(Train)["steps"] != ""


def test_help_of_modes_explains_each_key_once(capsys: pytest.CaptureFixture[str]) -> None:
    modes = cli.Modes({"mode=train": Train, "mode=rate": Optimizer}, lambda given: f"mode={given.get('mode')}")
    assert run(lambda config, overrides: 1, "--help", schema=modes, name="none") == 0
    shown = capsys.readouterr().out
    places = [shown.index(part) for part in ("mode=train:", "steps=1000", "mode=rate:", "  name=muon")]
    assert places == sorted(places)
    assert run(lambda config, overrides: 1, "mode=rate", "--help", schema=modes, name="none") == 0
    shown = capsys.readouterr().out
    assert "  name=muon" in shown and "steps=1000" not in shown


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["-c", "job"], ["--cfg=job"]])
def test_cfg_prints_the_composed_settings(capsys: pytest.CaptureFixture[str], flag: list[str]) -> None:
    assert run(lambda config, overrides: 1, "model=nano", *flag, "prompt=${x}") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["n_layer"] == 3 and shown["prompt"] == "${x}" and shown["steps"] == 1000


def test_cfg_knows_only_job(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--cfg", "hydra"], ["-c"], ["--cfg", "job", "-m", "seed=1,2"]):
        assert run(lambda config, overrides: 1, *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "--cfg" in line or "-c" in line


@pytest.mark.parametrize(
    "program", [["train.py"], ["sample.py"], ["finetune.py"], ["-m", "scripts.evaluate"], ["-m", "scripts.compress"]]
)
def test_an_interrupt_while_torch_is_imported_is_no_traceback(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, *program], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "" and process.returncode == -signal.SIGINT


def test_main_can_be_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as end_on_interrupt leaves it
    try:
        assert run(lambda config, overrides: signal.raise_signal(signal.SIGINT)) == 130
    finally:
        signal.signal(signal.SIGINT, before)


SWEEP = """
from __future__ import annotations
from dataclasses import dataclass, field
from conf import cli
from model.config import ModelConfig

@dataclass
class Train:
    run_dir: str | None = field(default=None, metadata={"kind": "path"})
    prompt: str = field(default="", metadata={"kind": "text"})
    json: str | None = field(default=None, metadata={"kind": "output"})
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: ModelConfig = field(default_factory=ModelConfig)
    optimizer: ModelConfig = field(default_factory=ModelConfig)

def main(config, overrides):
    print(config.run_dir, config.model.n_layer, config.prompt, sorted(overrides))
    if config.seed == 2:
        raise cli.InputError("seed 2 is unlucky")

cli.run(main, Train, name="SWEEP")
"""


@pytest.mark.slow
def test_multirun_sweeps_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SWEEP)

    def sweep(*arguments: str) -> subprocess.Popen[str]:
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/users/ada"}
        command = [sys.executable, "program.py", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    run_dir = "run_dir='~/a-${seed}-${model.n_layer}'"
    good = sweep("-m", run_dir, "seed=1,2,3", "model.n_layer=1,2", "prompt='${seed} ${x}'")
    out, err = good.communicate()
    keys = ["model.n_layer", "prompt", "run_dir", "seed"]
    shown = [f"/users/ada/a-{s}-{n} {n} ${{seed}} ${{x}} {keys}" for s in (1, 2, 3) for n in (1, 2)]
    assert out.splitlines() == shown, err
    alone = sweep("run_dir=~/a-${seed}-${model.n_layer}", "seed=1", "model.n_layer=1", "prompt=${seed} ${x}")
    assert alone.communicate()[0].splitlines() == shown[:1]  # the same meaning without --multirun
    assert good.returncode == 2 and err.count("error: seed 2 is unlucky\n") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "program.py"]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["multirun.yaml"]

    # Mistakes in Hydra's own settings, in a swept value, in an interpolation: one line, whoever notices them.
    bad = {
        ("seed=1,2", "run_dir=out/a"): "${seed}",
        (run_dir, "hydra/launcher=nowhere"): "nowhere",
        (run_dir, "seed=1,x"): "x",
        ("run_dir='a-${sede}'", "seed=1"): "sede",
        (run_dir, "seed=[1"): "seed=[1",
        (run_dir, "seed=range(1,2,0)"): "range()",
        (run_dir, "seed=range(0,0)"): "no job",
        (run_dir, "seed=1,2", "hydra.launcher._target_=no.such.Class"): "no.such.Class",
        (run_dir, "seed=1", "json=/proc/x.json"): "json=/proc/x.json cannot be written",
    }
    running = {arguments: sweep("-m", *arguments) for arguments in bad}
    for arguments, process in running.items():
        err = process.communicate()[1]
        lines = [line for line in err.splitlines() if not line.startswith("job ")]
        assert process.returncode == 2 and len(lines) == 1 and bad[arguments] in lines[0], err
