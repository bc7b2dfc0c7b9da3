"""The shape of the code: who may import whom, what an import may do, how long a file may be."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.programs import ROOT, capture, finish, start

PACKAGES = ("model", "data", "conf", "scripts", "tests")
ENTRY_POINTS = ("train", "finetune", "sample")
FILES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
STDLIB = sys.stdlib_module_names
LONGEST, LONGEST_TEST, LONGEST_OF = 330, 420, {"train.py": 400, "model/gpt.py": 220}
MOST_FILES = 12  # in a folder

# A folder, or a file at the top of a package, imports only what is listed below it.
ORDER = {
    "model": [
        "training", "bulk sample_settings", "language_model", "next_word", "exchange", "checkpoints", "inspection",
        "inference",
        "planning", "optimization", "distributed", "gpt", "attention cache loss rotary", "config device seeds threads",
    ],
    "data": [
        "exchange", "labelled", "evaluation", "batching", "preparation", "reporting", "curation", "tokenizers",
        "corpus", "downloads", "pool files",
    ],
    "conf": ["run", "display", "cli"],
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """The whole name of every module and of everything imported from one, wherever in the file it stands."""
    found = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(parsed(path)):
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
        ("model", {"torch", "safetensors", "gguf", "transformers", "tokenizers", "llama_cpp"}),
        ("data", {"numpy", "regex", "jinja2", "tiktoken", "sentencepiece", "pyarrow", "zstandard", "rensa"}),
        ("conf", {"hydra", "omegaconf", "yaml", "rich", "matplotlib", "wandb"}),
    ],
)
def test_a_package_imports_only_itself_the_library_and_what_it_is_allowed(package, allowed):
    for path in files_of(package):
        assert tops(path) <= STDLIB | allowed | {package}, name_of(path)


@cache
def inner_imports(path: Path) -> set[Path]:
    """The files of the repository that a file imports."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        for stop in range(len(parts), 0, -1):
            if (file := ROOT.joinpath(*parts[:stop]).with_suffix(".py")).exists():
                found.add(file)
                break
    return found


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    level = {name: place for place, names in enumerate(ORDER[package]) for name in names.split()}
    files = [path for path in files_of(package) if path.relative_to(ROOT).as_posix() != f"{package}/__init__.py"]
    for path in files:
        own = path.relative_to(ROOT).with_suffix("").parts[1]
        assert own in level, f"{name_of(path)} is in no place of ORDER"
        for other in inner_imports(path):
            theirs = other.relative_to(ROOT).with_suffix("").parts
            if theirs[0] == package and len(theirs) > 1 and theirs[1] not in (own, "__init__"):
                assert level[own] < level[theirs[1]], f"{name_of(path)} imports {name_of(other)}"


def test_no_two_files_import_each_other():
    graph = {path: inner_imports(path) - {path} for path in FILES}
    done: set[Path] = set()
    while ready := [path for path in graph if path not in done and graph[path] <= done]:
        done.update(ready)
    assert not sorted(name_of(path) for path in graph.keys() - done)


def test_folders_are_small_and_each_has_a_page_about_it():
    folders = {path.parent for path in FILES} - {ROOT}
    for folder in folders:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_FILES or folder == ROOT / "scripts", folder
        if folder.relative_to(ROOT).parts[0] != "tests":
            assert (folder / "README.md").exists(), folder


def test_only_the_command_line_knows_hydra():
    found = {name_of(path) for path in FILES if tops(path) & {"hydra", "omegaconf"}}
    assert all(name.startswith("conf/cli/") for name in found) and found


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
            if path.is_relative_to(ROOT / "scripts" / "benchmarks"):  # they share how they measure
                found = {name for name in found if not name.startswith("scripts.benchmarks.")}
            if path.parent.name == "server" or name_of(path) == "scripts/serve.py":  # a program in parts
                found = {name for name in found if not name.startswith("scripts.server.")}
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
        "jinja2",
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
    docstring = ast.get_docstring(parsed(path))
    assert docstring and docstring.splitlines()[0].endswith((".", ";", ","))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_OF.get(
        name_of(path), LONGEST_TEST if path.is_relative_to(ROOT / "tests") else LONGEST
    )


def test_each_program_shows_its_help(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ENTRY_POINTS:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
        ended = capture(lambda: runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__"))  # noqa: B023
        assert ended.status == 0 and not ended.err, ended.err
        assert ended.out.startswith(f"usage: python {name}.py") and "checkpoint=" in ended.out
    assert list(tmp_path.iterdir()) == []
