"""READMEs: every command line composes, Python blocks run, and every file, folder and link exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from conf import cli
from scripts import bench
from tests.programs import ROOT, capture
from tests.test_architecture import FILES

PACKAGES = ("model", "data", "conf", "scripts", "tests")
PAGES = sorted([ROOT / "README.md", *(path for name in PACKAGES for path in (ROOT / name).rglob("*.md"))])
PROGRAMS = {  # how a command line names it: (module, settings, name of its yaml)
    "train.py": ("train", "TrainConfig", "train"),
    "sample.py": ("sample", "MODES", "sample"),
    "finetune.py": ("finetune", "FinetuneConfig", "finetune"),
    "scripts.prepare": ("scripts.prepare", "PrepareConfig", "prepare"),
    "scripts.evaluate": ("scripts.evaluate", "EvaluateConfig", "evaluate"),
    "scripts.lm_eval": ("scripts.lm_eval", "LmEvalConfig", "lm_eval"),
    "scripts.ablations": ("scripts.ablations", "AblationsConfig", "ablations"),
    "scripts.speeches": ("scripts.speeches", "SpeechesConfig", "speeches"),
    "scripts.topics": ("scripts.topics", "TopicsConfig", "topics"),
    "scripts.languages": ("scripts.languages", "LanguagesConfig", "languages"),
    "scripts.tradeoff": ("scripts.tradeoff", "TradeoffConfig", "tradeoff"),
    "scripts.cloze": ("scripts.cloze", "ClozeConfig", "cloze"),
    "scripts.compress": ("scripts.compress", "CompressConfig", "compress"),
    "scripts.faults": ("scripts.faults", "FaultsConfig", "faults"),
    "scripts.check_device": ("scripts.check_device", "CheckConfig", "check_device"),
    "scripts.import_model": ("scripts.import_model", "ImportConfig", "import_model"),
    "scripts.export": ("scripts.export", "ExportConfig", "export"),
    "scripts.serve": ("scripts.serve", "ServeConfig", "serve"),
    "scripts.tokenizer": ("scripts.tokenizer", "ToolConfig", "tokenize"),
    "scripts.inspect": ("scripts.inspect", "InspectConfig", "inspect"),
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)  # (language, content)
STARTS = ("python ", "bash ", "torchrun ", "srun ", "pip ", "git ", "source ", "cd ", "echo ", "cat ", "zcat ")
FILE_NAME = re.compile(r"(?<![\w./*~{-])(?:[\w-]+/)*[\w-]+\.(?:py|sh|toml)\b(?!\()")
THEIRS = ("model.py",)  # files of nanoGPT that are named here
FOLDER = re.compile(r"`((?:model|data|conf|scripts|tests)/[\w/]*)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def command_lines(page: Path) -> list[str]:
    """The command lines in blocks and in `inline code`, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = (content for language, content in BLOCK.findall(text) if language in ("", "bash", "sh"))
    lines = [line for content in blocks for line in content.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:python|bash|torchrun) [^`]+)`", BLOCK.sub("", text))
    return [line for line in [*lines, *(line.replace("\n", " ") for line in inline)] if line.startswith(STARTS)]


def check(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composes each command of a line as the program itself does, without the work; ~ is expanded as in bash."""
    for command in re.split(r" && | \| ", line):
        words = [re.sub(r"^(\w+)=~/", rf"\1={Path.home()}/", word) for word in shlex.split(command, comments=True)]
        if words[0] in ("git", "cd", "source", "echo", "cat", "zcat") or "scripts.NAME" in words:
            continue
        if words[0] == "bash":
            assert subprocess.run(["bash", "-n", ROOT / words[1]], check=False).returncode == 0, line
        elif words[0] == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert words[1:3] == ["install", "-e"] and words[3][2:-1] in extras, line
        elif words[:3] == ["python", "-m", "pytest"]:
            paths = [word.partition("::")[0] for word in words[3:] if word.startswith("tests")]
            assert all((ROOT / path).exists() for path in paths), line
        else:
            place = next((n for n, word in enumerate(words) if word in PROGRAMS or word == "scripts.bench"), None)
            assert place is not None, line
            if place > 1 and words[0] == "torchrun" and (ranks := re.search(r"nproc_per_node=(\d+)", line)):
                monkeypatch.setenv("WORLD_SIZE", ranks[1])
            ended = capture(lambda: start(words[place], words[place + 1 :]))  # noqa: B023
            assert ended.status == 0, f"{line}\n{ended.err}"


def start(program: str, arguments: list[str]) -> None:
    """Starts a program whose main does nothing."""
    if program == "scripts.bench":
        if not arguments or arguments[0].startswith("-"):
            return bench.main(arguments)
        assert arguments[0] in bench.BENCHMARKS, arguments[0]
        schema, name = importlib.import_module(f"scripts.benchmarks.{arguments[0]}").Config, f"bench_{arguments[0]}"
        arguments = arguments[1:]
    else:
        module, attribute, name = PROGRAMS[program]
        schema = getattr(importlib.import_module(module), attribute)
    cli.run(lambda cfg, overrides: None, schema, name=name, argv=arguments)


@cache
def lines_by_page() -> dict[Path, list[str]]:
    """Every command line once, on the first page that has it."""
    first = {line: page for page in reversed(PAGES) for line in command_lines(page)}
    return {page: [line for line, place in first.items() if place == page] for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_compose(page, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()  # as earlier commands leave it
    (tmp_path / "nanoGPT").mkdir()
    (tmp_path / "nanoGPT" / "model.py").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))  # --multirun changes both
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    for line in lines_by_page()[page]:
        with monkeypatch.context() as patch:
            check(line, patch)


def test_every_program_has_a_command_line():
    text = "\n".join(line for page in PAGES for line in command_lines(page))
    assert all(name in text for name in (*PROGRAMS, "scripts/quickstart.sh", "scripts/test.sh"))
    assert all(f"scripts.bench {name}" in text for name in bench.BENCHMARKS)


@pytest.mark.parametrize(
    "line", ["python train.py corpsu=~/notes", "python -m scripts.bench decoed", "bash nowhere.sh"]
)
def test_a_wrong_command_line_is_noticed(line, monkeypatch):
    with pytest.raises(AssertionError):
        check(line, monkeypatch)


def test_python_blocks_run(trained, tmp_path, monkeypatch, capsys):
    """A block that begins with an import runs, with a run in out/notes and a folder ~/notes; others only compile."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").symlink_to(trained)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("Listen to your heart. " * 99)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    blocks = [block for page in PAGES for language, block in BLOCK.findall(page.read_text()) if language == "python"]
    assert blocks
    for block in blocks:
        ast.parse(block)
        if block.startswith(("from ", "import ")):
            exec(block, {"__name__": "readme"})


@cache
def known_files() -> set[str]:
    """Every file of the code by every end of its path: a.py, inference/a.py, model/inference/a.py."""
    scripts = [*FILES, *(ROOT / "scripts").glob("*.sh"), ROOT / "pyproject.toml"]
    parts = [path.relative_to(ROOT).parts for path in scripts]
    return {"/".join(names[start:]) for names in parts for start in range(len(names))}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_folders_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    assert not set(FILE_NAME.findall(text)) - known_files() - set(THEIRS)
    assert all((ROOT / folder).is_dir() or (ROOT / f"{folder}.py").exists() for folder in FOLDER.findall(text))
    assert all((page.parent / link).exists() for link in LINK.findall(text))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name == "README.md"], ids=name_of)
def test_a_readme_names_the_files_and_folders_beside_it(page):
    text = page.read_text(encoding="utf-8")
    files = {path.name for path in FILES if path.parent == page.parent} - {"__init__.py"}
    folders = {path.parent.name for path in FILES if path.parent.parent == page.parent}
    assert not {name for name in files | folders if not re.search(rf"\b{re.escape(name)}\b", text)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_is_wrapped(page):
    """Tables, links, code and images may be longer."""
    lines = BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert all(len(line) <= 120 or line.startswith(("|", "![")) for line in lines)
