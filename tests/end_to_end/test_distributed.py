"""Two processes over gloo equal one, sample for sample and loss for loss, however they share the work."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints import reader
from model.distributed import parallel
from tests import ranks
from tests.programs import NANO, Ended, finish, ok, start

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


@dataclass
class Runs:
    folder: Path  # of one-*, *-ddp, *-fsdp
    two: Ended  # what two ranks said


def train_both(folder: Path, settings: dict, which: str) -> Runs:
    for name, values in settings.items():
        ranks.fit(folder / f"one-{name}", **values)
    two = finish(start(*TORCHRUN, "-m", "tests.ranks", str(folder), which))
    assert two.status == 0, two.err
    return Runs(folder, two)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What tests/ranks.py does first, and what one process makes of the same settings."""
    folder = tmp_path_factory.mktemp("runs")
    for name, optimizer in (("adamw", ranks.ADAMW), ("muon", ranks.MUON)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel.StopSignal, "agreed", parallel.StopSignal.agreed)
            ranks.stop_after(7)
            ranks.fit(folder / f"there-{name}", optimizer=optimizer)
    return train_both(folder, ranks.SOME | ranks.BEGUN, "some")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return train_both(tmp_path_factory.mktemp("more"), ranks.MORE, "more")


def difference(one: Path, other: Path, *, falls: bool = True) -> float:
    """The largest difference of any training or validation loss; the loss of a run that learns falls."""
    pairs = [*zip(losses(one), losses(other), strict=True), *zip(validation(one), validation(other), strict=True)]
    assert len(pairs) == 22 and (not falls or losses(one)[0] - losses(one)[-1] > 0.02)
    return max(abs(a - b) for a, b in pairs)


def compare(runs: Runs, name: str, strategy: str, bound: float) -> None:
    one, two = runs.folder / f"one-{name}", runs.folder / f"{name}-{strategy}"
    assert difference(one, two, falls=name not in ranks.BEGUN) < bound
    ours, theirs = reader.find(one), reader.find(two)
    assert ours.weights().keys() == theirs.weights().keys()
    assert ours.train_state()[0].keys() == theirs.train_state()[0].keys()
    if bound < 1e-4:
        # Keys' biases change no attention: their gradient is rounding, which AdamW makes steps of full length from.
        for name, value in ((name, value) for name, value in ours.weights().items() if not name.endswith("qkv.bias")):
            torch.testing.assert_close(theirs.weights()[name], value, atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.SOME)
def test_two_ranks_equal_one_process(runs, name, strategy):
    compare(runs, name, strategy, 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.BEGUN)
def test_two_ranks_begin_as_one_process_does(runs, name, strategy):
    compare(runs, name, strategy, 1e-5)
    first = {begun: losses(runs.folder / f"{begun}-{strategy}")[0] for begun in ranks.BEGUN}
    assert abs(first["drawn"] - first["started"]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.MORE)
def test_two_ranks_equal_one_process_in_every_family_and_precision(more, name, strategy):
    compare(more, name, strategy, 2e-2 if "half" in name or "bfloat16" in name else 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_each_rank_may_write_a_part_of_a_checkpoint(runs, strategy):
    found = reader.find(runs.folder / f"parts-{strategy}")
    assert sorted(path.name for path in found.directory.glob("*.safetensors")) == [
        f"{stem}-0000{number}-of-00002.safetensors" for stem in ("model", "train_state") for number in (1, 2)
    ]
    whole = reader.find(runs.folder / f"muon-{strategy}")
    for part, all_of_it in ((found.weights(), whole.weights()), (found.train_state()[0], whole.train_state()[0])):
        assert {name: value.shape for name, value in part.items()} == {n: v.shape for n, v in all_of_it.items()}
    sizes = [path.stat().st_size for path in found.directory.glob("model-*.safetensors")]
    assert max(sizes) < 0.7 * sum(sizes)
    index = json.loads((found.directory / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        torch.testing.assert_close(load_file(found.directory / file)[name], found.weights()[name])


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_damage_to_a_part_is_seen(runs, tmp_path, harm):
    shutil.copytree(runs.folder / "parts-fsdp", tmp_path / "run")
    part = reader.find(tmp_path / "run").directory / "train_state-00002-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    part.unlink()
    if harm == "flip":
        content[-1] ^= 1
        part.write_bytes(content)
    said = []
    assert reader.newest(tmp_path / "run", say=said.append).step == 10
    assert part.name in said[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_goes_on_from_one_process_to_two_and_back(runs, name):
    there = runs.folder / f"there-{name}"
    assert reader.find(there).step == 14
    ranks.fit(there, optimizer=getattr(ranks, name.upper()), resume=True)
    assert difference(runs.folder / f"one-{name}", there) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_is_not_a_number_on_one_rank_is_skipped_by_both(runs, strategy):
    found = losses(runs.folder / f"once-{strategy}")
    assert len(found) == 19  # the loss of the fourth step is none
    assert "skipped 1 update(s) with a non-finite gradient, the last at step 4: batch of step 3" in runs.two.out
    for _, value in reader.find(runs.folder / f"once-{strategy}").weights().items():
        assert torch.isfinite(value).all()
    for rank in (0, 1):
        assert f"always-{strategy} rank {rank}: 10 updates in a row" in runs.two.out
    assert not reader.steps(runs.folder / f"always-{strategy}")


def validation(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line]


@pytest.fixture
def options(poem, tmp_path):
    return [
        f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO, "batch_size=8", "steps=20", "log_every=1",
        "optimizer=adamw", "eval_every=7", "save_every=5",
    ]  # fmt: skip


def test_two_ranks_equal_one_process_for_any_split_of_the_batch(options, tmp_path):
    ended = finish(start(*TORCHRUN, "train.py", *options, "parallel=ddp", f"run_dir={tmp_path / 'two'}"))
    assert ended.status == 0, ended.err
    ok("train", *options, f"run_dir={tmp_path / 'one'}")
    ok("train", *options, "micro_batch=2", f"run_dir={tmp_path / 'split'}")
    reference = losses(tmp_path / "one")
    assert len(reference) == 20 and reference[0] - reference[-1] > 0.05
    for name in ("two", "split"):
        assert max(abs(a - b) for a, b in zip(losses(tmp_path / name), reference, strict=True)) < 1e-5, name
        ends = zip(validation(tmp_path / name), validation(tmp_path / "one"), strict=True)
        assert max(abs(a - b) for a, b in ends) < 1e-5, name
    names = [set(reader.find(tmp_path / name).weights()) for name in ("one", "two")]
    assert names[0] == names[1]
    # A run of two ranks goes on with one.
    ok("train", f"run_dir={tmp_path / 'two'}", "resume=true", "steps=22", "parallel=none")
    assert reader.find(tmp_path / "two").step == 22


def test_sigterm_stops_all_ranks_after_the_same_step(options, tmp_path):
    run_dir = tmp_path / "run"
    many = [option for option in options if not option.startswith(("steps", "eval_every"))]
    process = start(*TORCHRUN, "train.py", *many, "steps=100000", "parallel=ddp", f"run_dir={run_dir}")
    deadline = time.monotonic() + 120
    while not (run_dir / "latest").exists():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert "stopped after step" in ended.out, ended.err
    stopped = int(ended.out.split("stopped after step ")[1].split()[0])
    assert reader.find(run_dir).step == stopped
    # The command that it prints goes on; so does one process alone, which a saved parallel=ddp does not disturb.
    printed = shlex.split(ended.out.split("resume with:")[1].strip().splitlines()[0])
    assert printed[0] == "torchrun"
    more = [f"steps={stopped + 3}", "eval_every=1000", "save_every=1000"]
    ended = finish(start("-m", "torch.distributed.run", *printed[1:], *more))
    assert ended.status == 0 and reader.find(run_dir).step == stopped + 3, ended.err
    ok("train", f"run_dir={run_dir}", "resume=true", f"steps={stopped + 5}", "eval_every=1000")
    assert reader.find(run_dir).step == stopped + 5


def test_a_mistake_is_told_once_and_ends_every_rank(options, tmp_path):
    missing = [f"corpus={tmp_path / 'nowhere'}", *options[1:]]
    ended = finish(start(*TORCHRUN, "train.py", *missing, "parallel=ddp", f"run_dir={tmp_path / 'run'}"))
    assert ended.status != 0
    told = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "nowhere" in told[0]


@pytest.mark.parametrize(
    "how, strategy", [("dry_run=true", "ddp"), ("time_budget=5s", "ddp"), ("time_budget=5s", "fsdp")]
)
def test_what_measures_first_ends_well_on_two_ranks(options, tmp_path, how, strategy):
    ended = finish(start(*TORCHRUN, "train.py", *options, f"parallel={strategy}", how, f"run_dir={tmp_path / 'run'}"))
    assert ended.status == 0 and "error:" not in ended.err, ended.err
    if how == "dry_run=true":
        assert not (tmp_path / "run").exists() or not reader.steps(tmp_path / "run")
    else:
        found = reader.find(tmp_path / "run")
        assert found.step > 0 and validation(tmp_path / "run")
        learned = {name.split(".", 2)[2] for name in found.train_state()[0]}
        assert learned == set(found.weights()), "these weights were not trained"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["activation_checkpointing=true"], ["model.norm_affine=true"]])
def test_what_fsdp_gathers_is_compiled_in_one_piece(options, tmp_path, more):
    more = [*more, "sample_every=10", "sample_prompt=Listen"]
    command = [*TORCHRUN, "train.py", *options, *more, "parallel=fsdp", "compile=true", f"run_dir={tmp_path / 'two'}"]
    ended = finish(start(*command, TORCH_LOGS="graph_breaks,recompiles"), timeout=500)
    assert ended.status == 0 and "Graph break" not in ended.err, ended.err
    assert 1 <= ended.err.count("Recompiling function") <= 4  # a rank's: for evaluation, of each half of a block
    ok("train", *options, *more, f"run_dir={tmp_path / 'one'}")
    assert max(abs(a - b) for a, b in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True)) < 1e-4


def test_texts_on_the_way_change_nothing_where_weights_are_shared_out(options, tmp_path):
    more = ["sample_every=10", "sample_prompt=Listen"]
    ended = finish(start(*TORCHRUN, "train.py", *options, *more, "parallel=fsdp", f"run_dir={tmp_path / 'two'}"))
    assert ended.status == 0, ended.err
    ok("train", *options, f"run_dir={tmp_path / 'one'}")
    assert ended.out.count("Listen") == 2
    assert max(abs(a - b) for a, b in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True)) < 1e-5


def test_muon_works_with_more_ranks_than_matrices(options, tmp_path):
    more = ["optimizer=muon", "optimizer.newton_schulz_dtype=float32", "batch_size=5"]
    five = [word.replace("=2", "=5") for word in TORCHRUN]
    ended = finish(start(*five, "train.py", *options, *more, "parallel=fsdp", f"run_dir={tmp_path / 'five'}"))
    assert ended.status == 0, ended.err
    ok("train", *options, *more, f"run_dir={tmp_path / 'one'}")
    assert max(abs(a - b) for a, b in zip(losses(tmp_path / "five"), losses(tmp_path / "one"), strict=True)) < 1e-5
    weights = reader.find(tmp_path / "five").weights()
    assert sum(name.startswith("blocks.") and value.dim() == 2 for name, value in weights.items()) < 5


@pytest.mark.slow
def test_damage_is_told_once_and_all_ranks_take_the_same_step(options, tmp_path):
    run_dir = tmp_path / "run"
    ok("train", *options, f"run_dir={run_dir}")
    before = losses(run_dir)
    resume = [*TORCHRUN, "train.py", f"run_dir={run_dir}", "resume=true", "parallel=fsdp"]
    (reader.steps(run_dir)[0] / "model.safetensors").write_bytes(b"")
    ended = finish(start(*resume))
    assert ended.status == 0 and ended.out.count("falling back to step_00000015") == 1, ended.err
    assert max(abs(a - b) for a, b in zip(losses(run_dir), before, strict=True)) < 1e-5
    for step in reader.steps(run_dir):
        (step / "model.safetensors").write_bytes(b"")
    ended = finish(start(*resume))
    told = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert ended.status != 0 and len(told) == 1 and "has no intact step" in told[0]


def workers(torchrun: int) -> list[int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == torchrun:
                environment = dict(item.partition("=")[::2] for item in (path / "environ").read_text().split("\0"))
                found[int(environment["RANK"])] = int(path.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the ranks in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_started_again_and_the_job_ends_as_undisturbed(options, tmp_path, rank, strategy):
    many = [*(option for option in options if not option.startswith(("steps", "eval_every"))), "steps=150"]
    many += ["eval_every=75", f"parallel={strategy}"]
    ended = finish(start(*TORCHRUN, "train.py", *many, f"run_dir={tmp_path / 'whole'}"))
    assert ended.status == 0, ended.err
    run_dir = tmp_path / "run"
    process = start(*TORCHRUN, "--max-restarts=3", "train.py", *many, f"run_dir={run_dir}")
    while not (run_dir / "step_00000020").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    os.kill(workers(process.pid)[rank], signal.SIGKILL)
    ended = finish(process)
    assert ended.status == 0, ended.err
    assert f"resuming {run_dir}" in ended.out
    files = [reader.find(tmp_path / name).directory / "model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_averages_and_recomputing_are_the_same_on_two_ranks(options, tmp_path, strategy):
    # Validation gets worse all the time, so no evaluation inside the tail saves: saving too would put FSDP's own copies
    # of the weights away, which hold the average then.
    (tmp_path / "texts").mkdir()
    shutil.copyfile(tmp_path / "poem.txt", tmp_path / "texts" / "poem.txt")
    (tmp_path / "texts" / "other.txt").write_text("ZXQ QXZ " * 100)
    options = [*options, f"corpus={tmp_path / 'texts'}", "val_include=other.txt"]
    more = ["weight_average=tail", "tail_fraction=0.5", "activation_checkpointing=true", "steps=8", "eval_every=1"]
    more += ["save_every=99"]
    ended = finish(start(*TORCHRUN, "train.py", *options, *more, f"parallel={strategy}", f"run_dir={tmp_path / 'two'}"))
    assert ended.status == 0, ended.err
    ok("train", *options, *more, f"run_dir={tmp_path / 'one'}")
    assert validation(tmp_path / "one") == sorted(validation(tmp_path / "one"))
    for figures in (losses, validation):
        ends = zip(figures(tmp_path / "two"), figures(tmp_path / "one"), strict=True)
        assert max(abs(a - b) for a, b in ends) < 1e-5, figures.__name__
    one, two = (reader.find(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in ((one.weights(), two.weights()), (one.train_state()[0], two.train_state()[0])):
        assert mine.keys() == theirs.keys() and any(not name.startswith("adamw.") for name in mine)
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, atol=2e-4, rtol=1e-3, msg=name)
    # The two ranks go on with one, from the weights behind the average.
    ok("train", f"run_dir={tmp_path / 'two'}", "resume=true", "steps=10", "parallel=none")
    ok("train", f"run_dir={tmp_path / 'one'}", "resume=true", "steps=10")
    ends = [losses(tmp_path / name)[-1] for name in ("one", "two")]
    assert abs(ends[0] - ends[1]) < 1e-4
