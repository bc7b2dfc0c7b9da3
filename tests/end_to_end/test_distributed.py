"""Two processes over gloo give the losses, weights and checkpoints of one process, with DDP and with FSDP."""

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
from model.distributed.stop_signal import StopSignal
from tests import ranks
from tests.conftest import POEM
from tests.programs import NANO, Ended, finish, ok, start

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def logged(run_dir: Path, figure: str) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def losses(run_dir: Path) -> list[float]:
    return logged(run_dir, "train_loss")


def validation(run_dir: Path) -> list[float]:
    return logged(run_dir, "val_loss")


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def program_options(folder: Path) -> list[str]:
    """The options of a small run of train.py."""
    corpus = folder / "poem.txt"
    corpus.write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    return [
        f"corpus={corpus}", f"datasets={folder / 'datasets'}", *NANO, "batch_size=8", "steps=20", "log_every=1",
        "optimizer=adamw", "eval_every=7", "save_every=5",
    ]  # fmt: skip


@pytest.fixture
def options(tmp_path):
    return program_options(tmp_path)


SHORT = ["steps=10", "eval_every=4", "save_every=5"]


@dataclass
class Runs:
    folder: Path  # holds one-NAME, NAME-ddp and NAME-fsdp
    two_ranks: Ended

    def command(self, name: str, rank: int = 0) -> Ended:
        return Ended(**json.loads((self.folder / f"{name}-{rank}.json").read_text()))


def train_both(folder: Path, settings: dict, part: str) -> Runs:
    for name, values in settings.items():
        ranks.fit(folder / f"one-{name}", **values)
    two_ranks = finish(start(*TORCHRUN, "-m", "tests.ranks", str(folder), part))
    assert two_ranks.status == 0, two_ranks.err
    return Runs(folder, two_ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs of `tests.ranks FOLDER small`, and the same settings trained by one process."""
    folder = tmp_path_factory.mktemp("runs")
    for name, optimizer in (("adamw", ranks.ADAMW), ("muon", ranks.MUON)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopSignal, "agreed", StopSignal.agreed)
            ranks.stop_after(2)
            ranks.fit(folder / f"moved-{name}", optimizer=optimizer)
    options = [*program_options(folder), *SHORT]
    ok("train", *options, f"run_dir={folder / 'program'}")
    commands = {
        "program-ddp": ["parallel=ddp"],
        "program-fsdp": ["parallel=fsdp", "sample_every=5", "sample_prompt=Listen"],
        "dry_run": ["parallel=ddp", "dry_run=true"],
        "timed-ddp": ["parallel=ddp", "time_budget=1s"],
        "timed-fsdp": ["parallel=fsdp", "time_budget=1s"],
        "missing": ["parallel=ddp", f"corpus={folder / 'nowhere'}"],
    }
    lines = {name: [*options, *more, f"run_dir={folder / name}"] for name, more in commands.items()}
    (folder / "commands.json").write_text(json.dumps(lines))
    return train_both(folder, ranks.SMALL | ranks.STARTS, "small")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return train_both(tmp_path_factory.mktemp("families"), ranks.FAMILIES, "families")


def difference(one: Path, other: Path, *, learns: bool = True) -> float:
    """Returns the largest difference in any training or validation loss."""
    assert len(losses(one)) == 8 and len(validation(one)) == 2
    assert not learns or validation(one)[0] - validation(one)[1] > 0.02
    pairs = (losses(one), losses(other)), (validation(one), validation(other))
    return max(largest_difference(*pair) for pair in pairs)


def compare(runs: Runs, name: str, strategy: str, bound: float) -> None:
    one, two = runs.folder / f"one-{name}", runs.folder / f"{name}-{strategy}"
    assert difference(one, two, learns=name not in ranks.STARTS) < bound
    ours, theirs = reader.find(one), reader.find(two)
    assert ours.weights().keys() == theirs.weights().keys()
    assert ours.train_state()[0].keys() == theirs.train_state()[0].keys()
    if bound < 1e-4:
        # A bias of keys does not change attention. Its gradient is rounding error, which AdamW scales to full steps.
        for name, value in ((name, value) for name, value in ours.weights().items() if not name.endswith("qkv.bias")):
            torch.testing.assert_close(theirs.weights()[name], value, atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.SMALL)
def test_two_ranks_equal_one_process(runs, name, strategy):
    compare(runs, name, strategy, 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.STARTS)
def test_two_ranks_start_from_the_weights_of_one_process(runs, name, strategy):
    compare(runs, name, strategy, 1e-5)
    first = {start: losses(runs.folder / f"{start}-{strategy}")[0] for start in ranks.STARTS}
    assert abs(first["random"] - first["loaded"]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.FAMILIES)
def test_two_ranks_equal_one_process_in_every_family_and_precision(families, name, strategy):
    compare(families, name, strategy, 2e-2 if "bfloat16" in name else 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_each_rank_can_write_its_part_of_a_checkpoint(runs, strategy):
    found = reader.find(runs.folder / f"parts-{strategy}")
    assert sorted(path.name for path in found.directory.glob("*.safetensors")) == [
        f"{stem}-0000{number}-of-00002.safetensors" for stem in ("model", "train_state") for number in (1, 2)
    ]
    whole = reader.find(runs.folder / f"muon-{strategy}")
    for part, expected in ((found.weights(), whole.weights()), (found.train_state()[0], whole.train_state()[0])):
        assert {name: value.shape for name, value in part.items()} == {n: v.shape for n, v in expected.items()}
    sizes = [path.stat().st_size for path in found.directory.glob("model-*.safetensors")]
    assert max(sizes) < 0.7 * sum(sizes)
    index = json.loads((found.directory / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        torch.testing.assert_close(load_file(found.directory / file)[name], found.weights()[name])


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damage_to_one_part_is_detected(runs, tmp_path, damage):
    shutil.copytree(runs.folder / "parts-fsdp", tmp_path / "run")
    part = reader.find(tmp_path / "run").directory / "train_state-00002-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    part.unlink()
    if damage == "flip":
        content[-1] ^= 1
        part.write_bytes(content)
    said = []
    assert reader.newest(tmp_path / "run", say=said.append).step == 4
    assert part.name in said[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_moves_from_one_process_to_two_and_back(runs, name):
    moved = runs.folder / f"moved-{name}"
    assert reader.find(moved).step == 6
    ranks.fit(moved, optimizer=getattr(ranks, name.upper()), resume=True)
    assert difference(runs.folder / f"one-{name}", moved) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_nan_on_one_rank_is_skipped_by_both(runs, strategy):
    found = losses(runs.folder / f"once-{strategy}")
    assert len(found) == 7  # the loss of the fourth step is NaN
    assert "skipped 1 update(s)" in runs.two_ranks.out and "step 4: batch of step 3" in runs.two_ranks.out
    for _, value in reader.find(runs.folder / f"once-{strategy}").weights().items():
        assert torch.isfinite(value).all()
    for rank in (0, 1):
        assert f"always-{strategy} rank {rank}: 3 updates in a row" in runs.two_ranks.out
    assert not reader.steps(runs.folder / f"always-{strategy}")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_program_on_two_ranks_equals_one_process(runs, strategy):
    one, two = runs.folder / "program", runs.folder / f"program-{strategy}"
    assert len(losses(one)) == 10 and losses(one)[0] - losses(one)[-1] > 0.05
    assert largest_difference(losses(one), losses(two)) < 1e-5
    assert largest_difference(validation(one), validation(two)) < 1e-5
    assert set(reader.find(one).weights()) == set(reader.find(two).weights())
    # The run with FSDP also sampled on the way, which changes nothing.
    assert runs.command(f"program-{strategy}").out.count("Listen") == (2 if strategy == "fsdp" else 0)


def test_micro_batches_of_the_program_change_nothing(runs, tmp_path):
    ok("train", *program_options(runs.folder), *SHORT, "micro_batch=2", f"run_dir={tmp_path / 'split'}")
    for figures in (losses, validation):
        assert largest_difference(figures(runs.folder / "program"), figures(tmp_path / "split")) < 1e-5


def test_one_process_resumes_a_run_of_two_ranks(runs, tmp_path):
    shutil.copytree(runs.folder / "program-ddp", tmp_path / "two")
    ok("train", f"run_dir={tmp_path / 'two'}", "resume=true", "steps=12", "parallel=none")
    assert reader.find(tmp_path / "two").step == 12


def test_a_dry_run_works_on_two_ranks(runs):
    assert runs.command("dry_run").status == 0 and "error:" not in runs.command("dry_run").err
    assert not (runs.folder / "dry_run").exists() or not reader.steps(runs.folder / "dry_run")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_time_budget_works_on_two_ranks(runs, strategy):
    ended, run_dir = runs.command(f"timed-{strategy}"), runs.folder / f"timed-{strategy}"
    assert ended.status == 0 and "error:" not in ended.err, ended.err
    found = reader.find(run_dir)
    assert found.step > 0 and validation(run_dir)
    tensors, _ = found.train_state()
    trained = {name.split(".", 2)[2] for name in tensors if tensors[name].any()}
    assert trained == set(found.weights()), "some weights were not trained"


@pytest.mark.slow
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
    # The command that it prints resumes it. So does one process, although the saved config has parallel=ddp.
    printed = shlex.split(ended.out.split("resume with:")[1].strip().splitlines()[0])
    assert printed[0] == "torchrun"
    more = [f"steps={stopped + 3}", "eval_every=1000", "save_every=1000"]
    ended = finish(start("-m", "torch.distributed.run", *printed[1:], *more))
    assert ended.status == 0 and reader.find(run_dir).step == stopped + 3, ended.err
    ok("train", f"run_dir={run_dir}", "resume=true", f"steps={stopped + 5}", "eval_every=1000")
    assert reader.find(run_dir).step == stopped + 5


def test_an_error_is_printed_once_and_ends_every_rank(runs):
    ended = [runs.command("missing", rank) for rank in (0, 1)]
    assert all(one.status != 0 for one in ended)
    told = [line for one in ended for line in one.err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "nowhere" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["activation_checkpointing=true"], ["model.norm_affine=true"]])
def test_each_fsdp_unit_compiles_without_graph_breaks(options, tmp_path, more):
    more = [*more, "sample_every=10", "sample_prompt=Listen"]
    command = [*TORCHRUN, "train.py", *options, *more, "parallel=fsdp", "compile=true", f"run_dir={tmp_path / 'two'}"]
    ended = finish(start(*command, TORCH_LOGS="graph_breaks,recompiles"), timeout=500)
    assert ended.status == 0 and "Graph break" not in ended.err, ended.err
    assert 1 <= ended.err.count("Recompiling function") <= 4  # each half of a block, for evaluation, per rank
    ok("train", *options, *more, f"run_dir={tmp_path / 'one'}")
    assert largest_difference(losses(tmp_path / "two"), losses(tmp_path / "one")) < 1e-4


@pytest.mark.slow
def test_muon_works_with_more_ranks_than_matrices(options, tmp_path):
    more = ["optimizer=muon", "optimizer.newton_schulz_dtype=float32", "batch_size=5"]
    five = [word.replace("=2", "=5") for word in TORCHRUN]
    ended = finish(start(*five, "train.py", *options, *more, "parallel=fsdp", f"run_dir={tmp_path / 'five'}"))
    assert ended.status == 0, ended.err
    ok("train", *options, *more, f"run_dir={tmp_path / 'one'}")
    assert largest_difference(losses(tmp_path / "five"), losses(tmp_path / "one")) < 1e-5
    weights = reader.find(tmp_path / "five").weights()
    assert sum(name.startswith("blocks.") and value.dim() == 2 for name, value in weights.items()) < 5


@pytest.mark.slow
def test_damage_is_reported_once_and_all_ranks_use_the_same_step(options, tmp_path):
    run_dir = tmp_path / "run"
    ok("train", *options, f"run_dir={run_dir}")
    before = losses(run_dir)
    resume = [*TORCHRUN, "train.py", f"run_dir={run_dir}", "resume=true", "parallel=fsdp"]
    (reader.steps(run_dir)[0] / "model.safetensors").write_bytes(b"")
    ended = finish(start(*resume))
    assert ended.status == 0 and ended.out.count("falling back to step_00000015") == 1, ended.err
    assert largest_difference(losses(run_dir), before) < 1e-5
    for step in reader.steps(run_dir):
        (step / "model.safetensors").write_bytes(b"")
    ended = finish(start(*resume))
    told = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert ended.status != 0 and len(told) == 1 and "has no intact step" in told[0]


def workers(torchrun: int) -> list[int]:
    """Returns the process ids of the workers that torchrun started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == torchrun:
                environment = dict(item.partition("=")[::2] for item in (path / "environ").read_text().split("\0"))
                found[int(environment["RANK"])] = int(path.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_killed_rank_the_job_restarts_and_ends_with_the_same_weights(options, tmp_path, rank, strategy):
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
def test_weight_averages_and_activation_checkpointing_are_the_same_on_two_ranks(options, tmp_path, strategy):
    # The validation loss rises all the time, so no evaluation inside the tail saves. A save would free FSDP's gathered
    # copies, and the test is about those copies, which hold the average after an evaluation.
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
        assert largest_difference(figures(tmp_path / "two"), figures(tmp_path / "one")) < 1e-5, figures.__name__
    one, two = (reader.find(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in ((one.weights(), two.weights()), (one.train_state()[0], two.train_state()[0])):
        assert mine.keys() == theirs.keys() and any(not name.startswith("adamw.") for name in mine)
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, atol=2e-4, rtol=1e-3, msg=name)
    # One process resumes the run of two ranks, from the live weights and not from their average.
    ok("train", f"run_dir={tmp_path / 'two'}", "resume=true", "steps=10", "parallel=none")
    ok("train", f"run_dir={tmp_path / 'one'}", "resume=true", "steps=10")
    ends = [losses(tmp_path / name)[-1] for name in ("one", "two")]
    assert abs(ends[0] - ends[1]) < 1e-4
