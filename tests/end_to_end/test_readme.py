"""Every command line and every line of Python in the README is real."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess

import pytest

from conf import cli
from conf.cli.arguments import read_arguments
from conf.cli.config import group_options
from data.preparation.prepare import PrepareConfig
from finetune import FinetuneConfig
from sample import MODES, LanguageModel
from scripts.ablations import AblationsConfig
from scripts.cloze import ClozeConfig
from scripts.compress import CompressConfig
from scripts.evaluate import EvaluateConfig
from scripts.faults import FaultsConfig
from scripts.speeches import SpeechesConfig
from scripts.tokenizer import ToolConfig
from tests.programs import ROOT
from train import TrainConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {
    "train.py": ("train", TrainConfig),
    "sample.py": ("sample", MODES),
    "finetune.py": ("finetune", FinetuneConfig),
    "scripts.prepare": ("prepare", PrepareConfig),
    "scripts.evaluate": ("evaluate", EvaluateConfig),
    "scripts.ablations": ("ablations", AblationsConfig),
    "scripts.speeches": ("speeches", SpeechesConfig),
    "scripts.cloze": ("cloze", ClozeConfig),
    "scripts.compress": ("compress", CompressConfig),
    "scripts.faults": ("faults", FaultsConfig),
    "scripts.tokenizer": ("tokenize", ToolConfig),
}
SET_UP = ("git clone", "source .venv/bin/activate")
LINKED = ["scripts/quickstart.sh", "scripts/test.sh"]


BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)  # (language, content)


def command_lines() -> list[str]:
    inline = re.findall(r"`(python [^`]+|bash [^`]+)`", README)
    starts = ("python", "bash", "echo", "torchrun", "git", "source")
    return [
        line for language, block in BLOCKS if not language for line in block.splitlines() if line.startswith(starts)
    ] + inline


def compose(words: list[str]) -> None:
    """Composes one program's settings as it does itself; raises for what it would refuse."""
    program, *arguments = words
    if program == "scripts.bench":
        name, *arguments = arguments
        benchmark = importlib.import_module(f"scripts.benchmarks.{name}")
        cli.compose(benchmark.Config, name=f"bench_{name}", arguments=arguments)
    elif "--help" not in arguments:
        name, schema = PROGRAMS[program]
        if "-m" in arguments:  # a sweep: each value is checked when its job runs
            arguments.remove("-m")
            read_arguments(schema, arguments, options=group_options(name), multirun=True)
        else:
            shown = arguments[-2:] == ["--cfg", "job"]
            cli.compose(schema, name=name, arguments=arguments[: -2 if shown else None], check=not shown)


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_compose(line, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()  # as the commands before it have left it
    monkeypatch.chdir(tmp_path)
    if line.startswith(SET_UP):
        return
    words = shlex.split(line.split(" | ")[-1])
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", ROOT / words[1]], check=False).returncode == 0
        assert words[1] in LINKED
    elif words[0] == "torchrun":
        monkeypatch.setenv("WORLD_SIZE", words[2].split("=")[1])
        compose(words[words.index("train.py") :])
    else:
        assert words[0] == "python"
        compose(words[2:] if words[1] == "-m" else words[1:])


def test_there_are_command_lines_of_every_program():
    text = "\n".join(command_lines())
    assert all(program in text for program in (*PROGRAMS, *LINKED))


def test_a_wrong_command_line_would_be_seen():
    with pytest.raises(cli.InputError, match="corpus"):
        compose(shlex.split("train.py corpsu=~/notes run_dir=out/notes"))


def test_python_in_the_readme_names_what_exists():
    (block,) = (block for language, block in BLOCKS if language == "python")
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert hasattr(LanguageModel, node.func.attr), node.func.attr
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module or "", fromlist=["*"])
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_tree_lists_the_files_that_there_are():
    for folder in ("model", "data"):
        listed = set(re.findall(r"^  (\w+\.py)", README.split(f"\n{folder}/\n")[1].split("\n```")[0], re.MULTILINE))
        files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert files <= listed, files - listed
