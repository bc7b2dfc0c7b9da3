"""Every program refuses a damaged, malicious or mismatched checkpoint before using any of it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from conf.cli import program as command_line
from conf.cli.config import compose
from data.tokenizers.build import TokenizerConfig, build
from model.checkpoints import reader, writer
from tests.programs import ok, one_line, run

PROGRAMS = ("sample", "finetune", "train")


@pytest.fixture(scope="module", autouse=True)
def composed_once():
    """The tests differ in the files and not in the settings, so each command line is composed once."""
    known = {}

    def composed(schema, *, name, arguments):
        key = (name, *arguments)
        if key not in known:
            known[key] = compose(schema, name=name, arguments=arguments)
        return deepcopy(known[key])

    with mock.patch.object(command_line, "compose", composed):
        yield


def cover_up(step: Path) -> None:
    """Makes the manifest agree with the present files."""
    manifest = json.loads((step / "manifest.json").read_text())
    paths = [path for path in step.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest["files"] = {
        path.relative_to(step).as_posix(): {"bytes": path.stat().st_size, "sha256": reader.sha256(path)}
        for path in paths
    }
    (step / "manifest.json").write_text(json.dumps(manifest))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(step: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Changes the weights and makes the manifest agree."""
    save_file(change(load_file(step / "model.safetensors")), step / "model.safetensors")
    cover_up(step)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_undamaged_checkpoint_works(program, copy, starts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(program, *starts[program])


@pytest.mark.slow
def test_a_context_far_longer_than_the_text_costs_no_memory(copy, starts, poem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit(copy / "model.json", context=2**20)  # with rotary positions no tensor has this size
    cover_up(copy)
    ok("sample", *starts["sample"])
    ok("finetune", *starts["finetune"])
    assert "bits/byte" in ok("evaluate", "checkpoint=source", f"corpus={poem}", "datasets=datasets", "device=cpu")


def test_a_checkpoint_whose_weights_are_in_several_files_answers_a_prompt_file(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    for number in (1, 2):
        part = {name: weights[name] for name in sorted(weights)[number - 1 :: 2]}
        save_file(part, copy / f"model-0000{number}-of-00002.safetensors")
    cover_up(copy)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Listen"}\n')
    ok("sample", "checkpoint=source", "prompts=prompts.jsonl", "outputs=out.jsonl", "max_new_tokens=3", "device=cpu")
    assert "text" in json.loads((tmp_path / "out.jsonl").read_text())


def missing(step: Path) -> None:
    shutil.rmtree(step.parent)


def truncated(step: Path) -> None:
    path = step / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(step: Path) -> None:
    content = bytearray((step / "model.safetensors").read_bytes())
    content[-50] ^= 1
    (step / "model.safetensors").write_bytes(content)


def headless(step: Path) -> None:
    truncated(step)
    (step / "model.safetensors").write_bytes(b"\xff" * 64)
    cover_up(step)


def of_another_shape(step: Path) -> None:
    edit(step / "model.json", d_ff=64)
    cover_up(step)


def of_a_thousand_layers(step: Path) -> None:
    edit(step / "model.json", n_layer=1000)
    cover_up(step)


def of_another_dtype(step: Path) -> None:
    rewrite(step, lambda weights: {name: value.double() for name, value in weights.items()})


def not_finite(step: Path) -> None:
    rewrite(step, lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"] / 0})


def listing_a_file_outside(step: Path) -> None:
    cover_up(step)
    files = json.loads((step / "manifest.json").read_text())["files"]
    edit(step / "manifest.json", files=files | {"../../poem.txt": {"bytes": 1, "sha256": "0"}})


def of_wrong_types(step: Path) -> None:
    edit(step / "model.json", context=1.5)
    cover_up(step)


def without_weights(step: Path) -> None:
    (step / "model.safetensors").unlink()


def without_manifest(step: Path) -> None:
    (step / "manifest.json").unlink()


def empty_manifest(step: Path) -> None:
    (step / "manifest.json").write_text("")


def odd_manifest(step: Path) -> None:
    names = ("model.json", "model.safetensors", "tokenizer/tokenizer.json")
    edit(step / "manifest.json", files=dict.fromkeys(names, 1))


@pytest.mark.parametrize(
    "damage, parts",
    [
        (missing, ("checkpoint=source", "no such directory")),
        (truncated, ("model.safetensors", "bytes instead of", "again")),
        (flipped, ("model.safetensors", "sha256", "again")),
        (headless, ("model.safetensors", "not a readable safetensors", "again")),
        (of_another_shape, ("model.safetensors", "does not fit")),
        (of_a_thousand_layers, ("does not fit model.json", "blocks.1.", "again")),
        (of_another_dtype, ("model.safetensors", "does not fit", "F64 instead of F32", "again")),
        (not_finite, ("model.safetensors", "'lm_head.weight'", "NaN or infinity", "earlier checkpoint")),
        (listing_a_file_outside, ("manifest.json", "'../../poem.txt'", "not a plain name", "again")),
        (of_wrong_types, ("model.json", "context is 1.5", "int", "again")),
        (without_weights, ("model.safetensors", "missing", "again")),
        (without_manifest, ("manifest.json", "cannot be read")),
        (empty_manifest, ("manifest.json", "not JSON", "again")),
        (odd_manifest, ("manifest.json", "`files`", "again")),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_or_damaged_checkpoint_is_refused(refused, copy, starts, program, damage, parts):
    damage(copy)
    refused(program, *starts[program], parts=parts)


@pytest.mark.parametrize(
    "path", ["poem.txt", "empty", "source/metrics.jsonl", "source/step_00000001/model.safetensors"]
)
def test_a_path_that_is_not_a_checkpoint_is_refused(refused, copy, starts, tmp_path, path):
    (tmp_path / "empty").mkdir()
    for program in PROGRAMS:
        refused(program, *starts[program], f"checkpoint={path}", parts=(path, "no saved step"))


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB_TARGET"],))


@pytest.mark.parametrize("covered_up", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_malicious_pickle_is_refused_and_its_code_never_runs(
    refused, copy, starts, program, covered_up, tmp_path, monkeypatch
):
    monkeypatch.setenv("BOMB_TARGET", str(tmp_path / "exploded"))
    for write in (lambda path: path.write_bytes(pickle.dumps(Bomb())), lambda path: torch.save(Bomb(), path)):
        write(copy / "model.safetensors")
        if covered_up:
            cover_up(copy)
        refused(program, *starts[program], parts=("model.safetensors",))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))  # it does run when unpickled
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["byte", "char"])
@pytest.mark.parametrize("covered_up", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_tokenizer_of_another_checkpoint_is_refused(refused, copy, starts, program, covered_up, kind):
    own = json.loads((copy / "tokenizer" / "tokenizer.json").read_text())
    shutil.rmtree(copy / "tokenizer")
    shifted = "".join(chr(ord(character) + 1) for character in own["characters"])
    other = build(TokenizerConfig(kind=kind), [shifted])  # kind char: the same number of tokens
    other.save(copy / "tokenizer")
    assert (other.vocab_size == own["vocab_size"]) == (kind == "char")
    if covered_up:
        cover_up(copy)
        refused(program, *starts[program], parts=("tokenizer", "is not the tokenizer that the model was trained with"))
    else:
        refused(program, *starts[program], parts=("tokenizer.json is damaged",))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_corrupt_tokenizer_is_refused_even_if_the_manifest_agrees(refused, copy, starts, program):
    (copy / "tokenizer" / "tokenizer.json").write_text("{oops")
    cover_up(copy)
    refused(program, *starts[program], parts=("tokenizer.json", "damaged"))


def fill_disk(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    """Simulates a disk without room for the weights of these steps."""
    whole = writer.save_file

    def full(tensors, path):
        if any(f"step_{step:08d}" in str(path) for step in steps):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        whole(tensors, path)

    monkeypatch.setattr(writer, "save_file", full)


def test_a_run_that_cannot_save_its_last_step_reports_it_and_can_resume(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        fill_disk(patch, (2,))
        line = one_line(run("train", *base, "eval_every=1"))
        assert "step 2 could not be saved in run" in line and "No space left" in line and "resume=true" in line
    assert reader.find(tmp_path / "run").step == 1
    assert "at step 1" in ok("train", "run_dir=run", "resume=true")
    assert reader.find(tmp_path / "run").step == 2


@pytest.mark.parametrize("more", [["eval_every=1"], ["eval_every=1", "save_in_background=false"], ["val_fraction=0"]])
def test_a_run_that_diverges_publishes_nothing_and_is_never_finished(base, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    ended = run("train", *base, "steps=3", "optimizer.adamw_learning_rate=1e38", *more)
    line = one_line(ended)
    assert "is not saved" in line and "optimizer.learning_rate" in line
    assert "finished" not in ended.out and "so far)" not in ended.out
    assert not reader.steps(tmp_path / "run") and not (tmp_path / "run" / "latest").exists()


def test_a_temporarily_full_disk_costs_only_the_steps_not_saved(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [*base[:-2], "steps=6", "eval_every=1", "log_every=1", "keep_last=9"]
    ok("train", *settings, "run_dir=whole")
    with monkeypatch.context() as patch:
        fill_disk(patch, (2, 3))
        out = ok("train", *settings, "run_dir=run")
    assert out.count("could not be saved") == 2 and out.count("the run continues") == 2 and "No space left" in out
    assert [path.name[-1] for path in reader.steps(tmp_path / "run")] == ["6", "5", "4", "1"]
    assert not list((tmp_path / "run").glob(".tmp-*"))
    ends = [reader.find(Path(name)).directory / "model.safetensors" for name in ("whole", "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    best = reader.find(Path("run/best")).manifest["val_loss"]
    assert best == min(reader.verify(path).manifest["val_loss"] for path in reader.steps(tmp_path / "run"))
