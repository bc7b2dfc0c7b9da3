"""Own files: a corpus does not contain what this program or wandb wrote below its folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from data.corpus.corpora import documents
from data.corpus.own_files import OWN
from data.corpus.reading import Skipped
from data.labelled.outputs import Outputs
from data.tokenizers.build import TokenizerConfig, build
from tests.preparing import run as prepare
from tests.programs import NANO, ok

NOTES = {"a.txt": "ay", "sub/b.txt": "bee"}


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes" / "sub").mkdir(parents=True)
    for name, text in NOTES.items():
        (tmp_path / "notes" / name).write_text(text)
    return tmp_path / "notes"


def read(corpus, **settings) -> tuple[dict[str, str], Skipped]:
    skipped = Skipped()
    return {d.name: d.text for d in documents(str(corpus), skipped=skipped, **settings)}, skipped


def own(skipped: Skipped) -> list[str]:
    return sorted(name.removesuffix(f" ({OWN})") for name in skipped.examples if name.endswith(f" ({OWN})"))


def write_run(folder) -> None:
    (folder / "step_00000002").mkdir(parents=True)
    (folder / "config.yaml").write_text("corpus: .\nsteps: 2\nrun_dir: out/a\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 64, "elapsed_seconds": 3.5}\n')
    (folder / "timing.json").write_text("{}\n")
    (folder / "step_00000002" / "manifest.json").write_text('{"format": 1, "step": 2, "files": {}}')
    for name in ("latest", "best"):
        (folder / name).write_text("step_00000002\n")


def write_wandb(folder) -> None:
    files = folder / "wandb" / "offline-run-20261127_233225-ecilo5wr" / "files"
    files.mkdir(parents=True)
    (files / "output.log").write_text("step 1")
    (files.parent / "run-ecilo5wr.wandb").write_bytes(b":W&B")
    (folder / "wandb" / "latest-run").symlink_to(files.parent.name)
    (folder / "wandb" / "debug.log").symlink_to(files / "output.log")


def test_a_second_preparation_reads_the_same_documents(notes, tmp_path):
    settings = {"corpus": str(notes), "datasets": str(notes / "datasets")}
    target = prepare(tmp_path, **settings)
    assert prepare(tmp_path, **settings) == target
    found, skipped = read(notes)
    assert found == NOTES and own(skipped) == [f"datasets/{target.name}/"]


def test_a_run_below_its_corpus_can_be_resumed(tmp_path, poem, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("corpus=.", "run_dir=out/a", *NANO)
    ok("train", *arguments, "steps=1")
    out = ok("train", *arguments, "steps=2", "resume=true")
    assert "files read: 1 as text\n" in out and "1 document read, unchanged" in out


def test_each_kind_of_own_folder_is_left_out_wherever_it_is(notes):
    write_run(notes / "sub" / "deep" / "renamed")
    write_wandb(notes)
    build(TokenizerConfig(kind="char"), ["abc"]).save(notes / "tok")
    shutil.copytree(notes / "sub" / "deep" / "renamed" / "step_00000002", notes / "a step")
    (notes / "out" / "multirun").mkdir(parents=True)
    (notes / "out" / "multirun" / "multirun.yaml").write_text("hydra:\n  run: {}\n")
    expected = ["a step/", "out/multirun/multirun.yaml", "sub/deep/renamed/", "tok/", "wandb/"]
    for corpus in (notes, f"{notes}/**/*", f"{notes}/**"):
        found, skipped = read(corpus)
        assert found == NOTES and own(skipped) == expected, corpus
    assert own(read(notes, exclude=["tok/*", "wandb*"])[1]) == ["a step/", "out/multirun/multirun.yaml", *expected[2:3]]


def test_own_folders_and_files_that_are_named_are_read(notes, tmp_path):
    build(TokenizerConfig(kind="char"), ["abc"]).save(notes / "tok")
    assert list(read(notes / "tok")[0]) == ["tokenizer.json"]
    assert list(read(notes / "tok" / "tokenizer.json")[0]) == list(read(f"{notes}/tok/*.json")[0]) == ["tokenizer.json"]
    write_run(notes / "run")
    assert "config.yaml" in read(notes / "run", exclude="*.jsonl")[0]


def test_a_run_directory_that_is_the_corpus_folder_hides_the_run_but_not_the_notes(notes):
    write_run(notes)
    write_wandb(notes)
    for corpus in (notes, f"{notes}/**"):
        found, skipped = read(corpus)
        assert found == NOTES
        run = ["best", "config.yaml", "latest", "metrics.jsonl", "step_00000002/", "timing.json"]
        assert own(skipped) == [*run, "wandb/"]


def test_files_of_other_programs_with_the_same_names_are_read(notes):
    others = {
        "x/config.yaml": "model: gpt\n",
        "x/metrics.jsonl": '{"text": "a song"}\n',
        "y/index.json": '{"format": 2}',
        "y/manifest.json": "[]",
        "y/tokenizer.json": "not JSON",
        "z/run-me.txt": "wandb",
        "z/multirun.yaml": "jobs: 3\n",
        "z/answers.about.json": '{\n "prompts": 3\n}\n',
        "z/prompt.json": '{\n "prompt": "x",\n "tokens": [],\n "mine": 1\n}\n',
    }
    for name, text in others.items():
        (notes / name).parent.mkdir(exist_ok=True)
        (notes / name).write_text(text)
    found, skipped = read(notes)
    assert len(found) == len(NOTES) + len(others) and not own(skipped)


def test_results_of_bulk_prompts_are_left_out_finished_or_not(notes):
    about = {"prompts": "sha256 1", "checkpoint": "step_1 sha256 2"}
    for name in ("finished.jsonl", "started.txt"):
        outputs = Outputs(notes / name, about=about, sizes=np.array([1]), order=np.array([0]))
        with outputs:
            outputs.add([{"index": 0, "prompt": "a", "text": "b"}])
            if name == "finished.jsonl":
                outputs.publish()
    found, skipped = read(notes)
    assert found == NOTES
    assert own(skipped) == [
        "finished.jsonl",
        "finished.jsonl.about.json",
        *[f"started.txt.{e}" for e in ("about.json", "partial")],
    ]
    assert read(notes / "finished.jsonl", text_field="prompt")[0] == {"finished.jsonl:1": "a"}


def test_what_the_programs_write_is_recognized(trained, notes, monkeypatch):
    """Runs every program that writes JSON, so that a new field in its results cannot make them a corpus."""
    monkeypatch.chdir(notes)
    shutil.copytree(trained, notes / "out" / "a")
    (notes / "labels.jsonl").write_text('{"prompt": "a", "options": ["b", "c"], "completion": "b", "text": "label"}\n')
    common = (f"checkpoint={trained}", "device=cpu", "dtype=float32")
    for mode in ("text", "next_word", "next_token", "continue"):
        ok("sample", *common, f"mode={mode}", "prompt=Listen", f"json={mode}.json")
    ok("sample", *common, "prompt=Listen", "num_samples=2", "max_new_tokens=2", "json=several.json")
    ok("sample", *common, "mode=score", "text= to", "prompt=Listen", "json=score.json")
    ok("sample", *common, "mode=score", "options=[ to, by]", "prompt=Listen", "json=options.json")
    ok("sample", *common, "mode=score", "examples=labels.jsonl", "json=choices.json")
    ok("evaluate", *common, "examples=labels.jsonl", "json=examples.json")
    ok("evaluate", *common, f"corpus={trained.parent / 'poem.txt'}", "json=corpus.json")
    ok("tokenize", "mode=train", "corpus=a.txt", "tokenizer=char", "out=tok")
    ok("tokenize", "mode=compare", "corpus=a.txt", "tokenizers=tok", "json=compared.json")
    ok("tokenize", "mode=train", f"corpus={trained.parent / 'poem.txt'}", "tokenizer.vocab_size=300", "out=bpe")
    ok("tokenize", "mode=export", "tokenizers=bpe", "out=exported.json")
    found, skipped = read(notes)
    assert list(found) == ["a.txt", "labels.jsonl:1", "sub/b.txt"]
    written = {path.name for path in notes.glob("*.json")}
    assert len(written) == 12
    folders = {f"datasets/{path.name}/" for path in (notes / "datasets").glob("[!.]*-*")}
    assert set(own(skipped)) == written | folders | {"out/a/", "tok/", "bpe/"}
    assert len(json.loads((notes / "several.json").read_text())) == 2
