"""Text arrives byte for byte, and each mistake on the command line is one line with the value and the fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conf import cli
from conf.cli.arguments import read_arguments
from tests.conf.cli.schema import NASTY, ROOT, Train, compose, mistakes


@pytest.mark.parametrize("text, other", list(zip(NASTY[::2], [*NASTY[1::2], ""], strict=False)))
def test_free_text_arrives_byte_for_byte(text: str, other: str) -> None:
    config, overrides = compose(f"prompt={text}", f"tokenizer.pattern={other}")
    assert config.prompt == text and config.tokenizer.pattern == other
    assert overrides == {"prompt": text, "tokenizer.pattern": other}


def test_free_text_survives_a_real_command_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from __future__ import annotations\nimport json, sys\nfrom dataclasses import asdict, dataclass, field\n"
        "from conf import cli\n\n@dataclass\nclass Sample:\n"
        "    prompt: str | None = field(default=None, metadata={'kind': 'text'})\n"
        "    json: str | None = field(default=None, metadata={'kind': 'output'})\n\n"
        "def main(config, overrides):\n    print(json.dumps(asdict(config)))\n\n"
        "assert 'hydra' not in sys.modules, 'importing conf.cli must be cheap'\n"
        "cli.run(main, Sample, name='sample')\n"
    )
    arguments = [f"prompt={NASTY[0]}\n", "json=It's (1).json"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, str(program), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"prompt": f"{NASTY[0]}\n", "json": "It's (1).json"}
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]  # Hydra makes no output directories


def test_paths_expand_home_and_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    config, overrides = compose("run_dir=~/It's, x=1 ", "json=null", "corpus=~/notes (2024)", "include=null")
    assert config.run_dir == "/users/ada/It's, x=1 " and config.json is None and config.include is None
    assert config.corpus == "/users/ada/notes (2024)"
    assert overrides["run_dir"] == config.run_dir and overrides["json"] is None


def test_hydras_grammar_reads_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    config, _ = compose(
        "corpus=[shakespeare, '~/a, b', \"[x]\"]", "include=['*.md']", "stop=['\n', 'It is ']", "prompt=[x]"
    )
    assert config.corpus == ["shakespeare", "/users/ada/a, b", "[x]"] and type(config.corpus) is list
    assert config.include == ["*.md"] and config.stop == ["\n", "It is "] and config.prompt == "[x]"
    assert "quote it" in mistakes("stop=[a, 2024]")[0] and "2024" in mistakes("stop=[a, 2024]")[0]
    assert "cannot be read" in mistakes("corpus=[a'b]")[0] and "list" in mistakes("corpus=[a'b]")[0]
    assert "run_dir= is empty" in mistakes("run_dir=")[0]


@pytest.mark.parametrize("text", ["[/INST]", "[x y]", "[2024]", "[${x}]", "[a=b]", "[\\n]"])
def test_text_in_brackets_is_a_list_or_text_only_if_that_is_clear(text: str) -> None:
    item, whole = json.dumps(text[1:-1]), json.dumps(text)
    assert mistakes(f"stop={text}") == [f"stop={text} may be a list or text; write stop='[{item}]' or stop='[{whole}]'"]
    with pytest.raises(cli.InputError, match="may be a list or text"):
        read_arguments(Train, [f"stop={text}"], options={}, multirun=True)
    config, _ = compose("corpus=[notes]", f"stop={text}.")
    assert config.corpus == ["notes"] and config.stop == f"{text}."


@pytest.mark.parametrize(
    "typed, value",
    [("['/INST']", ["/INST"]), ('["[/INST]"]', ["[/INST]"]), ("[a, b]", ["a", "b"]), ("[]", [])],
)
def test_a_clear_list_of_texts_is_one(typed: str, value: list[str]) -> None:
    assert compose(f"stop={typed}")[0].stop == value


def test_a_setting_in_a_path_is_replaced_and_in_text_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    paths = ["run_dir=~/x-${seed}-${model.n_layer}", "corpus=[a-${seed}, b]", "json=${tokenizer.kind}.json"]
    config, overrides = compose("seed=3", "prompt=${seed}", "include=${seed}", *paths)
    assert config.run_dir == "/users/ada/x-3-6" and config.corpus == ["a-3", "b"] and config.json == "bpe.json"
    assert config.prompt == "${seed}" and config.include == "${seed}" and overrides["run_dir"] == config.run_dir
    assert compose("run_dir=out/${corpus}", "corpus=notes")[0].run_dir == "out/notes"
    assert compose("run_dir=x-\\${seed}")[0].run_dir == "x-${seed}"
    assert "sede" in mistakes("run_dir=x-${sede}")[0] and len(mistakes("run_dir=x-${seed")) == 1


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for path, part in (("/proc/x.json", "No such"), (tmp_path / "no/x", "No such"), (tmp_path, "Is a directory")):
        [line] = mistakes(f"json={path}")
        assert line.startswith(f"json={path} cannot be written") and part in line and "an existing folder" in line
    (tmp_path / "old.json").write_text("old")
    assert compose(f"json={tmp_path / 'old.json'}")[0].json and compose(f"json={tmp_path / 'new.json'}")[0].json
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


def test_misspelt_keys_name_the_nearest() -> None:
    [line] = mistakes("optimzer.learning_rate=1")
    assert line == "unknown key 'optimzer.learning_rate'; did you mean 'optimizer.learning_rate'?"
    assert "did you mean 'optimizer.learning_rate'" in mistakes("learning_rate=1")[0]
    assert "did you mean 'optimizer.learning_rate'" in mistakes("optimizer.lr=1")[0]  # and not optimizer
    assert "did you mean 'optimizer.learning_rate'" in mistakes("lr=1")[0]
    assert "did you mean 'run_dir'" in mistakes("rundir=x")[0]
    assert "--help lists" in mistakes("zzzzz=1")[0]
    assert "did you mean 'model'" in mistakes("modle=tiny")[0]


@pytest.mark.parametrize(
    "argument, parts",
    [
        ("steps=many", ["steps=many", "an integer"]),
        ("steps=1.5", ["steps=1.5", "an integer"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate=fast", "a number"]),
        ("optimizer.warmup_steps=x", ["an integer or null"]),
        ("debug=maybe", ["true or false"]),
        ("model=gpt3", ["model=gpt3", "gpt2_124m", "tiny"]),
        ("model.n_layer=null", ["model.n_layer=null", "an integer"]),
        ("steps=a=b", ["steps=a=b", "quote"]),
        ("steps=1,2", ["--multirun"]),
        ("tokenizer.special_tokens=x", ["a list"]),
        ("+steps=1", ["steps=VALUE"]),
        ("~steps", ["~steps"]),
        ("--steps=3", ["--steps=3", "write steps=3"]),
        ("steps", ["write steps=VALUE"]),
        ("hydra.run.dir=x", ["unknown key"]),
        ("model.ngram=3", ["model.ngram no longer exists"]),
    ],
)
def test_a_mistake_is_one_line_with_the_value_and_the_fix(argument: str, parts: list[str]) -> None:
    [line] = mistakes(argument)
    assert all(part in line for part in parts), line


def test_words_without_an_equals_sign() -> None:
    assert mistakes("steps", "200") == ["'steps 200' is not key=value; write steps=200"]
    assert mistakes("--steps", "200") == ["'--steps 200' is not key=value; write steps=200"]
    assert mistakes("prompt=Listen", "to", "your") == [
        "'to your' is not key=value; quote a value with spaces: 'prompt=Listen to your'"
    ]


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(mistakes("steps=x", "sede=1", "model=gpt3", "seed=y")) == 4


def choose(given: dict[str, str]) -> str:
    return f"mode={given.get('mode', 'train')}"


def test_a_mode_takes_only_its_own_keys() -> None:
    from tests.conf.cli.schema import Optimizer

    modes = cli.Modes({"mode=train": Train, "mode=rate": Optimizer}, choose)
    with pytest.raises(cli.InputError) as caught:
        cli.compose(modes, name="none", arguments=["eps=1", "lerning_rate=2"])
    assert caught.value.args == (
        "eps= has no effect in mode=train; it is for mode=rate",
        "unknown key 'lerning_rate'; did you mean 'optimizer.learning_rate'?",
    )
