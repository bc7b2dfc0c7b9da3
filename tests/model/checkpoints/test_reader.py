"""The run directory: published complete or not at all, verified before use, never unpickled."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import InputError
from model.checkpoints import reader, writer
from model.checkpoints.lock import lock_run
from model.config import ModelConfig
from tests.families import make


def save_tokenizer(directory: Path) -> None:
    (directory / "tokenizer" / "tokenizer.json").write_text("{}")


def snapshot_of(step: int, seed: int = 0) -> writer.Snapshot:
    return writer.snapshot(
        step,
        model=make("modern", seed=seed, n_layer=1),
        save_files=[save_tokenizer],
        tensors={"adamw.exp_avg.embed.weight": torch.ones(128, 64)},
        state={"step": step},
        manifest={"tokens": step * 10},
        peers=writer.Peers(),
    )


def save_step(run_dir: Path, step: int, *, best: bool = False, keep_last: int = 2, seed: int = 0) -> Path:
    return writer.write(run_dir, snapshot_of(step, seed), best=best, keep_last=keep_last, peers=writer.Peers())


def test_a_saved_step_loads_unchanged(tmp_path):
    directory = save_step(tmp_path, 5)
    found = reader.find(tmp_path)
    assert found.directory == directory and found.step == 5 and found.manifest["tokens"] == 50
    model, saved = make("modern", n_layer=1), found.model(torch.device("cpu"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids), saved(ids))
    tensors, state = found.train_state()
    assert state == {"step": 5} and torch.equal(tensors["adamw.exp_avg.embed.weight"], torch.ones(128, 64))


def test_equal_models_give_equal_files(tmp_path):
    one, two = save_step(tmp_path / "a", 1), save_step(tmp_path / "b", 1)
    assert reader.sha256(one / "model.safetensors") == reader.sha256(two / "model.safetensors")
    assert set(reader.find(one).weights()) == set(make("modern", n_layer=1).state_dict())  # canonical names


def test_pointers_and_pruning_keep_the_last_and_the_best(tmp_path):
    save_step(tmp_path, 1, best=True)
    for step in (2, 3, 4):
        save_step(tmp_path, step)
    assert [p.name for p in reader.steps(tmp_path)] == ["step_00000004", "step_00000003", "step_00000001"]
    assert reader.find(tmp_path).step == reader.find(tmp_path / "latest").step == 4
    assert reader.find(tmp_path / "best").step == 1
    assert not list(tmp_path.glob(".tmp*"))


def test_a_damaged_newer_step_does_not_displace_an_intact_one(tmp_path):
    for step in (200, 300):
        save_step(tmp_path, step)
    (tmp_path / "step_00000300" / "model.safetensors").write_bytes(b"")
    save_step(tmp_path, 250, keep_last=1)
    assert [path.name for path in reader.steps(tmp_path)] == ["step_00000250"]
    assert reader.find(tmp_path).step == 250


FILES = ["manifest.json", "model.json", "model.safetensors", "train_state.safetensors", "tokenizer/tokenizer.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_detected_and_the_older_step_is_used_with_a_warning(tmp_path, file, damage):
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 2, seed=1) / file
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        position = content.index(b'"sha256": "') + 20 if file == "manifest.json" else len(content) // 2
        content[position] ^= 1  # elsewhere in the manifest it might hit white space, which is harmless
        path.write_bytes(content)
    else:
        path.unlink()
    said = []
    found = reader.newest(tmp_path, say=said.append)
    assert found is not None and found.step == 1
    assert "step_00000002" in said[0] and "falling back" in said[0]
    with pytest.raises(InputError, match="step_00000002"):
        reader.find(tmp_path / "step_00000002")


def test_no_intact_step_is_an_error_with_the_reason(tmp_path):
    (save_step(tmp_path, 1) / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no intact step.*model\.safetensors"):
        reader.newest(tmp_path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB_TARGET"],))


@pytest.mark.parametrize("cover_up", [False, True])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, monkeypatch, cover_up):
    monkeypatch.setenv("BOMB_TARGET", str(tmp_path / "exploded"))
    directory = save_step(tmp_path / "run", 1)
    weights = directory / "model.safetensors"
    if cover_up:
        torch.save({"embed.weight": Bomb()}, weights)
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["files"]["model.safetensors"] = {
            "bytes": weights.stat().st_size,
            "sha256": reader.sha256(weights),
        }
        (directory / "manifest.json").write_text(json.dumps(manifest))
    else:
        weights.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        reader.find(tmp_path / "run").model(torch.device("cpu"))
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_shape_are_refused(tmp_path):
    directory = save_step(tmp_path, 1)
    with pytest.raises(InputError, match="does not fit"):
        reader.find(directory).load_into(make("modern", n_layer=2))
    with pytest.raises(InputError, match="does not fit"):
        reader.find(directory).load_into(make("modern", n_layer=1, d_model=32))


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"n_layer": 2}, "there is no tensor 'blocks.1."),
        ({"n_layer": 10_000}, "there is no tensor 'blocks.1."),
        ({"n_layer": 100_000}, "n_layer=100000 must be between"),
        ({"n_layer": 10**9}, "n_layer=1000000000 must be between"),
        ({"d_model": 2**20}, r"instead of \(128, 1048576\)"),
        ({"d_model": 2**30}, "d_model=1073741824 must be between"),
        ({"d_ff": 2**24}, r"instead of \(16777216, 64\)"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000 must be between"),
        ({"vocab_size": -1}, "vocab_size=-1 must be between"),
        ({"context": 10**9}, "context=1000000000 must be between"),
        ({"context": 2**20, "position": "learned"}, "there is no tensor 'position_embed.weight'"),
        ({"tie_embeddings": True}, "there is no tensor 'lm_head.weight' in such a model"),
        ({"norm_eps": 10**400}, "norm_eps is 1000"),
    ],
)
def test_a_model_json_that_does_not_fit_the_weights_is_refused_before_memory_is_allocated(
    tmp_path, monkeypatch, values, message
):
    step = save_step(tmp_path, 1)
    replace_file(step, "model.json", lambda path: edit_json(path, **values))
    monkeypatch.setattr(torch.nn.Module, "to_empty", None)
    with pytest.raises(InputError, match=message):
        reader.find(step)


@pytest.mark.parametrize("file", ["model.safetensors", "train_state.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_with_nan_or_infinity_is_refused_and_the_older_one_is_used(tmp_path, file, value):
    save_step(tmp_path, 1)
    step = save_step(tmp_path, 2)
    tensors = load_file(step / file)
    next(iter(tensors.values())).view(-1)[-1] = value
    replace_file(step, file, lambda path: save_file(tensors, path))
    with pytest.raises(InputError, match=rf"{file}: tensor '.*' holds NaN or infinity"):
        reader.find(step)
    said = []
    found = reader.newest(tmp_path, say=said.append)
    assert found is not None and found.step == 1 and "holds NaN or infinity; " in said[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bfloat16])
@pytest.mark.parametrize("file", ["model.safetensors", "train_state.safetensors"])
def test_tensors_of_another_dtype_are_refused(tmp_path, file, dtype):
    step = save_step(tmp_path, 1)
    tensors = {name: value.to(dtype) for name, value in load_file(step / file).items()}
    replace_file(step, file, lambda path: save_file(tensors, path))
    with pytest.raises(InputError, match=f"{file} does not fit model.json: dtype of tensor .* instead of F32"):
        reader.find(step)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/hostname", "../secret", "tokenizer/../../secret", "a\\b", "C:\\x", "a//b", "a/b/c",
             ".hidden", "a\0b", "\ud800", "é", "x" * 5000, "a\n", "tokenizer/"],
)  # fmt: skip
def test_a_name_that_is_not_plain_is_refused_before_it_is_looked_up(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    step = save_step(tmp_path / "run", 1)
    files = json.loads((step / "manifest.json").read_text())["files"]
    edit_json(step / "manifest.json", files={name: {"bytes": 1, "sha256": "0"}} | files)
    with pytest.raises(InputError, match=r"manifest\.json lists '.*': not a plain name") as error:
        reader.find(step)
    assert len(str(error.value)) < 500


def test_a_step_number_that_is_not_the_directory_s_is_refused(tmp_path):
    step = save_step(tmp_path, 1)
    edit_json(step / "manifest.json", step=10**9)
    with pytest.raises(InputError, match=r"manifest\.json says that this is step 1000000000"):
        reader.find(step)


def test_training_state_that_the_manifest_does_not_cover_is_refused(tmp_path):
    step = save_step(tmp_path, 1)
    files = json.loads((step / "manifest.json").read_text())["files"]
    del files["train_state.safetensors"]
    edit_json(step / "manifest.json", files=files)
    with pytest.raises(InputError, match=r"manifest\.json does not list train_state\.safetensors"):
        reader.find(step)


@pytest.mark.parametrize("file", ["manifest.json", "model.json"])
def test_json_nested_too_deeply_is_refused(tmp_path, file):
    step = save_step(tmp_path, 1)
    if file == "manifest.json":
        (step / file).write_text('{"a":' * 100_000)
    else:
        replace_file(step, file, lambda path: path.write_text("[" * 100_000))
    with pytest.raises(InputError, match=f"{file} is not JSON"):
        reader.find(step)


@pytest.mark.parametrize(
    ("target", "message"),
    [("nowhere", "no such directory"), ("empty", "no saved step"), ("run/best", "does not name a step")],
)
def test_a_path_without_a_checkpoint_is_a_clear_error(tmp_path, target, message):
    (tmp_path / "empty").mkdir()
    save_step(tmp_path / "run", 1)
    for pointer in ("step_99999999\n", "step_/../../run/step_00000001", "x" * 5000, "step_\0"):
        (tmp_path / "run" / "best").write_text(pointer)
        with pytest.raises(InputError, match=message):
            reader.find(tmp_path / target)


def test_one_process_at_a_time_locks_a_run(tmp_path):
    with (
        lock_run(tmp_path),
        pytest.raises(InputError, match="in use by another process"),
        lock_run(tmp_path),
    ):
        pass
    with lock_run(tmp_path):
        pass  # the lock was released


def test_a_failed_body_leaves_no_new_run_directory(tmp_path):
    with pytest.raises(KeyError), lock_run(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def replace_file(step: Path, name: str, write: Callable[[Path], object]) -> None:
    """Rewrites one file of a step and makes the manifest agree."""
    write(step / name)
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (step / name).stat().st_size, "sha256": reader.sha256(step / name)}
    (step / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_with_the_former_name_of_the_head_opens(tmp_path):
    step, model = save_step(tmp_path, 1), make("modern", n_layer=1)
    weights = load_file(step / "model.safetensors")
    weights["unembed.weight"] = weights.pop("lm_head.weight")
    replace_file(step, "model.safetensors", lambda path: save_file(weights, path))
    ones, zeros = torch.ones(128, 64), torch.zeros(128, 64)
    state = {"adamw.exp_avg.unembed.weight": ones, "adamw.exp_avg.embed.weight": zeros}
    replace_file(step, "train_state.safetensors", lambda path: save_file(state, path))
    found = reader.find(tmp_path)
    assert set(found.weights()) == set(model.state_dict())
    assert found.weights().header("lm_head.weight") == (tuple(model.lm_head.weight.shape), "F32")
    assert torch.equal(found.model(torch.device("cpu")).lm_head.weight, model.lm_head.weight)
    tensors, _ = found.train_state()
    assert set(tensors) == {"adamw.exp_avg.lm_head.weight", "adamw.exp_avg.embed.weight"}
    assert torch.equal(tensors["adamw.exp_avg.lm_head.weight"], ones)


def test_former_model_settings_open_and_a_removed_one_that_was_on_is_refused(tmp_path):
    step = save_step(tmp_path, 1)
    config = asdict(reader.find(step).config)
    former = {
        {"tie_embeddings": "tied", "norm_affine": "norm_weight", "norm_eps": "norm_epsilon", "logit_softcap": "softcap"}
        .get(name, name): value
        for name, value in config.items()
    }  # fmt: skip
    assert {"tied", "norm_weight", "norm_epsilon", "softcap"} <= former.keys()

    def open_with(**more: object) -> ModelConfig:
        replace_file(step, "model.json", lambda path: path.write_text(json.dumps(former | more)))
        return reader.find(step).config

    assert asdict(open_with()) == config
    assert asdict(open_with(zero_init=True, ngram=0, ngram_contexts=0)) == config
    with pytest.raises(InputError, match=r"model\.json: ngram=3 is not supported any more; use an older version"):
        open_with(ngram=3)
    with pytest.raises(InputError, match="unknown setting 'depth'"):
        open_with(depth=3)


@pytest.mark.parametrize(
    "misspelt, meant",
    [
        ("out/note", "out/notes"),
        ("ot/notes", "out/notes"),
        ("out/nots/best", "out/notes/best"),
        ("out/notes/step_00000003", "out/notes/step_00000002"),
        ("out/empyt", None),  # a folder without a run is no suggestion
        ("out/quite_another", None),
        ("elsewhere/than/notes", None),
    ],
)
def test_a_misspelt_run_is_answered_with_a_similar_one(tmp_path, misspelt, meant):
    save_step(tmp_path / "out" / "notes", 2, best=True)
    for folder in ("empty", "other"):
        (tmp_path / "out" / folder).mkdir()
    with pytest.raises(InputError, match="there is no such directory; ") as error:
        reader.find(tmp_path / misspelt)
    assert str(error.value).endswith(f"did you mean {tmp_path / meant}?" if meant else "check the path")
