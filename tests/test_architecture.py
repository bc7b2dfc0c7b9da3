"""The shape of the code: who may import whom, what an import may do, how long a file may be."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from .programs import ROOT, finish, start

PACKAGES = ("model", "data", "conf", "scripts", "tests")
ENTRY_POINTS = ("train", "finetune", "sample")
FILES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
STDLIB = sys.stdlib_module_names
LONGEST = 420


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """The whole name of every module and of everything imported from one, wherever in the file it stands."""
    found = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def files_of(package: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(ROOT).parts[0] == package]


def test_every_part_of_the_code_is_looked_at():
    assert {path.stem for path in FILES if path.parent == ROOT} == set(ENTRY_POINTS)
    assert all(len(files_of(package)) > 1 for package in PACKAGES)
    here = imports(Path(__file__))
    assert "tests.programs.ROOT" in here and "ast" in here and "pathlib.Path" in here


@pytest.mark.parametrize(
    "package, allowed",
    [
        ("model", {"torch", "safetensors"}),
        ("data", {"numpy", "regex", "tiktoken", "sentencepiece", "pyarrow", "zstandard", "rensa"}),
        ("conf", {"hydra", "omegaconf", "yaml", "rich", "matplotlib", "wandb"}),
    ],
)
def test_a_package_imports_only_itself_the_library_and_what_it_is_allowed(package, allowed):
    for path in files_of(package):
        assert tops(path) <= STDLIB | allowed | {package}, name_of(path)


def test_only_the_command_line_knows_hydra():
    found = {name_of(path) for path in FILES if tops(path) & {"hydra", "omegaconf"}}
    assert found == {"conf/cli.py"}


def test_entry_points_are_imported_only_where_agreed():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        found = {name for name in imports(path) if name.partition(".")[0] in ENTRY_POINTS}
        if name_of(path) == "finetune.py":
            assert found == {"train.fit", "train.LoopConfig"}
        elif path.is_relative_to(ROOT / "scripts"):
            assert found <= {"sample.load", "sample.LanguageModel"}, name_of(path)
        else:
            assert not found, name_of(path)


def test_nothing_imports_a_script():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "tests":
            found = {name for name in imports(path) if name.partition(".")[0] == "scripts"}
            if path.parent.name == "benchmarks":  # which share how they measure, and some have parts
                found = {name for name in found if not name.startswith("scripts.benchmarks.")}
            assert not found, name_of(path)
        assert "tests" not in tops(path) or path.relative_to(ROOT).parts[0] == "tests", name_of(path)


def run_python(code: str, cwd: Path) -> dict:
    ended = finish(start("-c", code, cwd=cwd))
    assert ended.status == 0 and not ended.err, ended.err
    return json.loads(ended.out)


LOAD = """
import json, os, random, sys
import torch, safetensors.torch
torch.set_num_threads(2)
before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist(), dict(os.environ)
known = {name.partition(".")[0] for name in sys.modules}
import importlib
for name in MODULES:
    importlib.import_module(name)
after = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist(), dict(os.environ)
new = {name.partition(".")[0] for name in sys.modules} - known - sys.stdlib_module_names
print(json.dumps({"changed": before != after, "new": sorted(new), "deterministic":
    torch.are_deterministic_algorithms_enabled()}))
"""


def modules_of(package: str) -> list[str]:
    parts = (path.relative_to(ROOT).with_suffix("").parts for path in files_of(package))
    return [".".join(part for part in names if part != "__init__") for names in parts]


def test_importing_all_of_model_brings_nothing_but_torch_and_changes_nothing(tmp_path):
    found = run_python(LOAD.replace("MODULES", repr(modules_of("model"))), tmp_path)
    assert found == {"changed": False, "new": ["model"], "deterministic": False}
    assert list(tmp_path.iterdir()) == []


def test_importing_all_of_data_and_conf_brings_no_torch_and_nothing_optional(tmp_path):
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules_of('data') + modules_of('conf')!r}:\n    importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)))\n"
    )
    found = set(run_python(code, tmp_path))
    heavy = {
        "torch",
        "tiktoken",
        "sentencepiece",
        "pyarrow",
        "zstandard",
        "rensa",
        "hydra",
        "omegaconf",
        "rich",
        "matplotlib",
        "wandb",
        "model",
    }
    assert {"data", "conf"} <= found and not heavy & found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_says_what_it_is_for_and_stays_short(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring and docstring.splitlines()[0].endswith((".", ";", ","))
    assert len(text.splitlines()) <= LONGEST


def test_each_program_shows_its_help(tmp_path):
    running = {name: start(str(ROOT / f"{name}.py"), "--help", cwd=tmp_path) for name in ENTRY_POINTS}
    for name, process in running.items():
        ended = finish(process)
        assert ended.status == 0 and not ended.err, ended.err
        assert ended.out.startswith(f"usage: python {name}.py") and "checkpoint=" in ended.out
    assert list(tmp_path.iterdir()) == []
