"""conf.cli: every yaml composes, text arrives byte for byte, and each mistake is one line with status 2."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conf.cli import program
from model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


@dataclass
class Tokenizer:
    kind: str = "bpe"
    vocab_size: int = 4096
    pattern: str = "gpt2"
    special_tokens: list[str] = field(default_factory=list)
    algorithm: str = "unigram"
    encoding: str = "gpt2"
    path: str | None = None


@dataclass
class Optimizer:
    kind: str = "muon"
    learning_rate: float = 0.02
    adamw_learning_rate: float | None = None
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    warmup_steps: int | None = None
    schedule: str = "wsd"
    min_lr_ratio: float = 0.0

    def validate(self) -> list[str]:
        return [] if self.learning_rate > 0 else [f"optimizer.learning_rate={self.learning_rate} must be above 0"]


@dataclass
class Wandb:
    project: str = "nextword"


@dataclass
class Train:
    corpus: Any = "shakespeare"
    include: Any = None
    stop: Any = None
    run_dir: str | None = None  # where the run is written
    prompt: str | None = None
    json: str | None = None
    steps: int = 1000  # optimizer steps
    seed: int = 1
    batch_size: int = 32
    micro_batch: int | None = None
    resume: Any = False
    debug: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    optimizer: Optimizer = field(default_factory=Optimizer)
    wandb: Wandb = field(default_factory=Wandb)

    def validate(self) -> list[str]:
        return [] if self.steps > 0 else [f"steps={self.steps} must be at least 1"]


def compose(*arguments: str) -> tuple[Train, program.Overrides]:
    return program.compose(Train, name="train", arguments=list(arguments))


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(program.InputError) as caught:
        compose(*arguments)
    assert all("\n" not in line for line in caught.value.args)
    return list(caught.value.args)


def run(main: Callable[[Any, program.Overrides], int | None], *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        program.run(main, Train, name="train", argv=list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group, option", [(g, o) for g in ("model", "tokenizer", "optimizer") for o in options(g)])
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    config, _ = compose(f"{group}={option}")
    assert config.model.validate() == [] and isinstance(config.model, ModelConfig)


@pytest.mark.parametrize("name", [path.stem for path in CONF.glob("*.yaml")])
def test_a_defaults_list_names_only_groups_that_exist(name: str) -> None:
    assert all(program._group_options(name).values())


def parameters(shape: ModelConfig, vocabulary: int) -> int:
    query_and_output, key_and_value = 2 * shape.d_model**2, 2 * shape.d_model * shape.kv_heads * shape.head_dim
    feed_forward = (3 if shape.activation == "swiglu" else 2) * shape.d_model * shape.ff_width
    tables = (1 if shape.tie_embeddings else 2) * vocabulary * shape.d_model
    tables += shape.context * shape.d_model if shape.position == "learned" else 0
    return shape.n_layer * (query_and_output + key_and_value + feed_forward) + tables


@pytest.mark.parametrize(
    "name, vocabulary, millions",
    [
        ("nano", 4096, 1.1),
        ("tiny", 4096, 6.8),
        ("small", 4096, 29.4),
        ("gpt2_124m", 50257, 124),
        ("gpt2_350m", 50257, 354),
        ("gpt2_774m", 50257, 774),
        ("gpt2_1558m", 50257, 1557),
        ("smollm2_135m", 49152, 134.5),
    ],
)
def test_models_have_the_size_in_their_name(name: str, vocabulary: int, millions: float) -> None:
    assert parameters(compose(f"model={name}")[0].model, vocabulary) / 1e6 == pytest.approx(millions, rel=0.02)


def test_tiny_is_the_dataclass_and_the_config_is_plain() -> None:
    config, overrides = compose()
    assert config == Train() and overrides == {}
    assert type(config.tokenizer.special_tokens) is list


NASTY = [
    "It's 1e3, a=b (2024) [x] café wow! ",
    *(" leading", "trailing ", "line\nbreak\n", "${x}", "${oc.env:HOME}", "null", "1e3", "true", "", "a,b", "{a: b}"),
    *(
        "[x]",
        "~/notes",
        '"quoted"',
        "'",
        "\\",
        "\\'",
        "#",
        "a: b",
        "--help",
        "=",
        "你好 👋\u200d",
        "\t",
        "@ $(x) `y` %s",
    ),
]


@pytest.mark.parametrize("text", NASTY)
def test_free_text_arrives_byte_for_byte(text: str) -> None:
    config, overrides = compose(f"prompt={text}", f"tokenizer.pattern={text}")
    assert config.prompt == text and config.tokenizer.pattern == text
    assert overrides == {"prompt": text, "tokenizer.pattern": text}


def test_free_text_survives_a_real_command_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from __future__ import annotations\nimport json, sys\nfrom dataclasses import asdict, dataclass\n"
        "from conf import cli\n\n@dataclass\nclass Sample:\n    prompt: str | None = None\n"
        "    json: str | None = None\n\n"
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
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]  # no output directories of Hydra's


def test_paths_know_home_and_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    config, overrides = compose("run_dir=~/It's, x=1 ", "json=null", "corpus=~/notes (2024)", "include=null")
    assert config.run_dir == "/users/ada/It's, x=1 " and config.json is None and config.include is None
    assert config.corpus == "/users/ada/notes (2024)"
    assert overrides["run_dir"] == config.run_dir and overrides["json"] is None


def test_lists_are_read_by_hydras_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    config, _ = compose(
        "corpus=[shakespeare, '~/a, b', \"[x]\"]", "include=['*.md']", "stop=['\n', 'It is ']", "prompt=[x]"
    )
    assert config.corpus == ["shakespeare", "/users/ada/a, b", "[x]"] and type(config.corpus) is list
    assert config.include == ["*.md"] and config.stop == ["\n", "It is "] and config.prompt == "[x]"
    assert "quote it" in mistakes("stop=[2024]")[0] and "2024" in mistakes("stop=[2024]")[0]
    assert "is not a list" in mistakes("corpus=[a'b]")[0]
    assert "run_dir= is empty" in mistakes("run_dir=")[0]


def test_misspelt_keys_name_the_nearest() -> None:
    [line] = mistakes("optimzer.learning_rate=1")
    assert line == "unknown key 'optimzer.learning_rate'; did you mean 'optimizer.learning_rate'?"
    assert "did you mean 'optimizer.learning_rate'" in mistakes("learning_rate=1")[0]
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


def test_all_mistakes_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(mistakes("steps=x", "sede=1", "model=gpt3", "seed=y")) == 4
    assert run(lambda config, overrides: 0, "steps=0", "optimizer.learning_rate=0", "model.dropout=2") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert [line.split("=")[0] for line in lines] == [
        "error: steps",
        "error: model.dropout",
        "error: optimizer.learning_rate",
    ]


def test_overrides_are_what_the_command_line_set() -> None:
    config, overrides = compose("model=gpt2_124m", "model.n_layer=2", "steps=5", "resume=auto")
    assert overrides["steps"] == 5 and overrides["resume"] == "auto" and overrides["model.n_layer"] == 2
    assert {key for key in overrides if key.startswith("model.")} == {f"model.{name}" for name in asdict(config.model)}
    assert not any(key.startswith(("tokenizer.", "optimizer.")) for key in overrides)
    overrides = compose("experiment=gpt2_recipe", "steps=7")[1]
    assert overrides["batch_size"] == 512 and overrides["model.n_layer"] == 12 and overrides["steps"] == 7
    assert "seed" not in overrides


def test_exit_statuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from data import InputError as DataError
    from model import InputError as ModelError

    def fail(error: Exception) -> Callable[[Any, program.Overrides], int | None]:
        def main(config: Any, overrides: program.Overrides) -> int | None:
            raise error

        return main

    assert run(lambda config, overrides: None) == 0
    assert run(lambda config, overrides: 3) == 3
    for error in (
        DataError("notes.txt:3: no"),
        ModelError("notes.txt:3: no"),
        FileNotFoundError(2, "no", "notes.txt:3"),
    ):
        assert run(fail(error)) == 2
        assert capsys.readouterr().err == "error: notes.txt:3: no\n"
    assert run(fail(DataError("no")), "debug=true") == 2
    assert "Traceback" in capsys.readouterr().err
    for bug in (
        ValueError("bug"),
        OSError("no file"),
        KeyError("x"),
    ):  # bugs pass through: Python prints them, status 1
        with pytest.raises(type(bug)):
            program.run(fail(bug), Train, name="train", argv=[])


def test_help_lists_keys_defaults_comments_and_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Train, "validate", lambda self: ["run_dir is required"])  # no obstacle to asking for help
    assert run(lambda config, overrides: 1, "--help") == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["steps=1000", "optimizer", "steps"] in lines and [
        "run_dir=null",
        "where",
        "the",
        "run",
        "is",
        "written",
    ] in lines
    assert ["seed=1"] in lines and "gpt2_1558m" in text and "the most tokens one forward sees" in text


def test_a_written_config_is_read_back(tmp_path: Path) -> None:
    config, _ = compose("model=smollm2_135m", "optimizer.eps=1e-9")
    for text in [*NASTY, "\x85\u2028\ufeff", "\udcff"]:
        config.prompt, config.corpus, config.tokenizer.special_tokens = text, [text, "b"], [text]
        program.write_config(config, tmp_path / "config.yaml")
        assert program.read_config(tmp_path / "config.yaml", Train) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    "old, new, part",
    [
        ("steps: 1000", "setps: 1000", "'setps'"),
        ("steps: 1000", "steps: many", "many"),
        ("steps: 1000\n", "", "lacks the key 'steps'"),
        ("  n_layer: 6", "  n_layer: 6\n  n_lyer: 6", "'model.n_lyer'"),
        ("steps: 1000", "steps: [", "line"),
        ("steps: 1000", "steps: !!python/object/apply:os.system ['true']", "python/object"),
        ("steps: 1000", "steps: \udcff", "damaged"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path: Path, old: str, new: str, part: str) -> None:
    path = tmp_path / "config.yaml"
    program.write_config(Train(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new), errors="surrogateescape")
    with pytest.raises(program.InputError) as caught:
        program.read_config(path, Train)
    assert str(path) in str(caught.value) and part in str(caught.value) and "\n" not in str(caught.value)


SWEEP = """
from __future__ import annotations
from dataclasses import dataclass, field
from conf import cli
from model.config import ModelConfig

@dataclass
class Train:
    run_dir: str | None = None
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: ModelConfig = field(default_factory=ModelConfig)
    optimizer: ModelConfig = field(default_factory=ModelConfig)

def main(config, overrides):
    print(config.run_dir, config.model.n_layer, sorted(overrides))
    if config.seed == 2:
        raise program.InputError("seed 2 is unlucky")

program.run(main, Train, name="SWEEP")
"""


def test_multirun_sweeps_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SWEEP)

    def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/users/ada"}
        command = [sys.executable, "program.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = sweep("-m", "run_dir='~/a-${seed}-${model.n_layer}'", "seed=1,2,3", "model.n_layer=1,2")
    keys = ["model.n_layer", "run_dir", "seed"]
    assert done.stdout.splitlines() == [f"/users/ada/a-{s}-{n} {n} {keys}" for s in (1, 2, 3) for n in (1, 2)]
    assert done.returncode == 2 and done.stderr.count("error: seed 2 is unlucky\n") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "program.py"]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["multirun.yaml"]

    done = sweep("seed=1,2", "-m", "run_dir=out/a")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "${seed}" in done.stderr


@pytest.mark.parametrize(
    "module, schema",
    [
        ("train", "TrainConfig"),
        ("finetune", "FinetuneConfig"),
        ("sample", "SampleConfig"),
        ("data.prepare", "PrepareConfig"),
        ("scripts.evaluate", "EvaluateConfig"),
    ],
)
def test_every_program_composes_with_every_option(module: str, schema: str) -> None:
    dataclass_ = getattr(importlib.import_module(module), schema)
    name = module.rpartition(".")[2]
    choices = program._group_options(name)
    for arguments in [[], *([f"{group}={option}"] for group in choices for option in choices[group])]:
        cfg, _ = program.compose(dataclass_, name=name, arguments=arguments, check=False)
        assert isinstance(cfg, dataclass_)
