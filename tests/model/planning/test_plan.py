"""Planning a run: counts that agree with the model, dry runs that leave nothing, budgets, sizes, what fits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conf import cli
from conf.run.stopwatch import Pace
from model import InputError, memory
from model.checkpoints import reader
from model.config import ModelConfig
from model.device import Compute
from model.distributed import parallel
from model.gpt import GPT
from model.optimization.schedule import OptimizerConfig, decay_start, lr_multiplier
from model.planning import plan
from model.planning.budget import Costs, Deadline, seconds_of
from model.planning.depth import settings_for
from model.training.measure import copied_bytes, saved_bytes
from model.training.microbatch import MicroBatches, best_rows, divisors, recompute_activations
from model.training.settings import LoopConfig
from sample import load
from tests.families import FAMILIES, make
from tests.programs import ok, run, snapshot
from train import TrainConfig

CPU = Compute.resolve("cpu", dtype="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_by_part_add_up(family):
    model = make(family)
    parts = plan.parameters_by_part(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert ("head" in parts) == (not model.config.tie_embeddings)
    assert parts["mlp"] == sum(p.numel() for block in model.blocks for p in block.mlp.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_that_torch_counts(family):
    model = make(family)
    ids = torch.randint(96, (1, 48))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids, targets=ids).backward()
    # The counter sees the padded head and full attention too. The first layer's input needs no gradient only where
    # the embedding is not trained, so everything counts three times.
    assert plan.flops_per_token(model) * 48 == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_large_presets_have_the_size_of_their_names_and_take_no_memory():
    reset = memory.peak(CPU.device)
    for name, billions in (("llama_10b", 10.5), ("llama_70b", 70.6), ("llama_100b", 101.8)):
        cfg = cli.compose(TrainConfig, name="train", arguments=[f"model={name}", "dry_run=true"])[0]
        cfg.model.vocab_size = 128_256
        with torch.device("meta"):
            model = GPT(cfg.model)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.1)
        sizing = plan.sizing(model, "H100", muon=False)
        assert sizing.total <= 0.9 * plan.GPUS["H100"].memory * plan.GIB
        assert sizing.gpus * plan.GPUS["H100"].memory * plan.GIB > plan.state_bytes(model, muon=False)
    assert reset is None or memory.peak(CPU.device) - reset < 200 * 2**20


def test_a_gpu_is_found_by_the_driver_s_name_and_an_unknown_one_refused():
    assert plan.find_gpu("NVIDIA H100 80GB HBM3") == plan.GPUS["H100"]
    assert plan.find_gpu("NVIDIA H100 PCIe") == plan.GPUS["H100PCIE"]
    assert plan.find_gpu("NVIDIA A100-SXM4-40GB") == plan.GPUS["A100-40"] != plan.GPUS["A100"]
    assert plan.find_gpu("h200") == plan.GPUS["H200"]
    with pytest.raises(InputError, match="gpu='Abacus' is not one of T4, "):
        plan.sizing(make("llama"), "Abacus", muon=True)


def test_sizing_on_paper_reads_no_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ok("train", "dry_run=true", "gpu=H100", "model=llama_70b", "tokenizer.vocab_size=128256", "corpus=nowhere")
    assert "70.6B" in out and "x H100 at least" in out and not list(tmp_path.iterdir())
    refused = run("train", "gpu=H100", "run_dir=x")
    assert refused.status == 2 and "gpu=H100 is for dry_run=true" in refused.err


def test_a_dry_run_says_all_and_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    out = ok("train", *base, "dry_run=true")
    for name in ("parameters", "FLOPs", "epochs", "speed", "time", "peak memory", "disk", "loss", "unigram", "bigram"):
        assert name in out, out
    assert "no forecast" in out and snapshot(tmp_path) == before
    ok("train", *base)
    out = ok("train", *base, "dry_run=true", "steps=9")
    assert "tokens of the same data" in out and "no forecast" not in out
    refused = run("train", *base, "dry_run=true", "resume=true")
    assert refused.status == 2 and "leave out resume" in refused.err


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_measuring_first_changes_no_weight(base, tmp_path, monkeypatch, optimizer):
    """A run with a budget measures; then it does just what a run of as many steps does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("model.planning.budget.TOLERANCE", 9.0)  # the fall stays as it is, however busy the machine
    options = [*base[:-1], f"optimizer={optimizer}", "optimizer.warmup_steps=2", "model.dropout=0.1", "eval_every=9"]
    ok("train", *options, "run_dir=timed", "time_budget=8s")
    steps = reader.find(tmp_path / "timed").step
    assert steps > 5
    ok("train", *options, "run_dir=counted", f"steps={steps}")
    one, two = (reader.find(tmp_path / name).weights() for name in ("timed", "counted"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "is finished" in ok("train", "run_dir=timed", "resume=true")
    # A longer time, or a number of steps instead, goes on.
    ok("train", "run_dir=timed", "resume=true", f"steps={steps + 2}")
    assert reader.find(tmp_path / "timed").step == steps + 2


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), ("1d", 86400)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten minutes", "0s", "-5m", "10 m", "5x", ""])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match="time_budget="):
        seconds_of(text)


def simulate(speed, budget=120.0, config=None, log_every=10, evaluation=4.0):
    """A run on a clock of its own, step n taking speed(n) seconds: what was decided when, the rates, the end."""
    config = config or OptimizerConfig()
    deadline = Deadline(config, steps=1000, budget=budget)
    costs, now = Costs(step=speed(0), evaluation=evaluation, saving=0.2), 5.0
    deadline.begin(costs, elapsed=now)
    decided, rates, done, line, pace = [], [], 0, (0, 0.0), Pace()
    while done < deadline.steps:
        rates.append(deadline.rate(done))
        decided.append(deadline.steps)
        now += speed(done)
        done += 1
        if done % log_every == 0 or done == 1:
            if done > 1:
                pace.add(done - line[0], now - line[1])
            line = (done, now)
            known = costs.known(step=pace.seconds_per_step, evaluation=None, saving=None, writing=None)
            deadline.decide(done, elapsed=now, costs=known)
        if done % deadline.eval_every == 0 or done == deadline.steps:
            now += costs.evaluation + costs.saving
            line = (line[0], line[1] + costs.evaluation + costs.saving)
    return deadline, decided, rates, now + costs.ending


@pytest.mark.parametrize("seconds", [0.005, 0.05, 0.5, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_budget_ends_on_time_with_the_rate_decayed(seconds, noise):
    generator = torch.Generator().manual_seed(0)
    factors = (1 + noise * torch.randn(100_000, generator=generator)).clamp(0.3, 3).tolist()
    deadline, decided, rates, end = simulate(lambda step: seconds * factors[step])
    assert 105 < end < 130
    assert rates[-1] < 0.05 + 2 / len(rates)
    if seconds < 1:  # Once the rate begins to fall, the number of steps stands.
        assert len(set(decided[decay_start(deadline.config, deadline.steps) + 10 :])) == 1 and deadline.bend is None
        # Before it, no rate depends on the number: the schedule of the run is that of its last number of steps.
        assert rates == [lr_multiplier(deadline.config, step, deadline.steps) for step in range(len(rates))]


@pytest.mark.parametrize("change", [300, 1000, 1500])
@pytest.mark.parametrize("factor", [0.5, 2.5])
def test_a_budget_follows_a_machine_whose_speed_changes(change, factor):
    deadline, decided, rates, end = simulate(lambda step: 0.05 if step < change else 0.05 * factor)
    assert (decided[0] > decided[-1]) == (factor > 1) and 105 < end < 130
    fall = rates[deadline.config.warmup_steps + 1 :]
    assert all(0 <= early - late < 0.05 for early, late in itertools.pairwise(fall)) and fall[-1] < 0.03


def test_a_budget_leaves_time_to_write_the_last_step():
    ends = {}
    for writing in (0.0, 20.0):
        deadline = Deadline(OptimizerConfig(), steps=1000, budget=100)
        deadline.begin(Costs(step=0.1, saving=0.2, writing=writing), elapsed=5)
        ends[writing] = deadline.steps
    assert ends[0.0] - ends[20.0] == pytest.approx(20 / 0.1, rel=0.05)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_budget_works_with_every_schedule(schedule):
    deadline, _, rates, end = simulate(lambda step: 0.05, config=OptimizerConfig(schedule=schedule))
    assert 105 < end < 130
    assert rates == [lr_multiplier(deadline.config, step, deadline.steps) for step in range(len(rates))]


def test_a_resumed_budget_keeps_what_was_decided():
    deadline = Deadline(OptimizerConfig(warmup_steps=5), steps=1000, budget=60)
    deadline.reopen(400, (250, 0.5), done=300, elapsed=43, changed=False)
    assert (deadline.steps, deadline.rate(300)) == (400, pytest.approx(1 / 3))
    deadline.decide(310, elapsed=45, costs=Costs(step=0.13))
    assert deadline.steps == 400 and deadline.bend == (250, 0.5)
    deadline.reopen(400, (250, 0.5), done=300, elapsed=45, changed=True)  # another budget
    assert deadline.steps == pytest.approx(300 * 60 * 0.97 / 45, abs=1)


def test_depth_gives_a_sane_size_and_what_is_said_stands(base, tmp_path, monkeypatch):
    for depth in range(1, 40):
        values = settings_for(depth, OptimizerConfig())
        shape = ModelConfig(
            vocab_size=96, **{key[6:]: value for key, value in values.items() if key.startswith("model.")}
        )
        assert not shape.validate() and shape.head_dim == 64
        assert values["batch_size"] & (values["batch_size"] - 1) == 0
    ordered = [settings_for(depth, OptimizerConfig()) for depth in (4, 8, 16, 32)]
    for smaller, larger in itertools.pairwise(ordered):
        assert smaller["optimizer.adamw_learning_rate"] > larger["optimizer.adamw_learning_rate"]
        assert smaller["batch_size"] * smaller["model.context"] < larger["batch_size"] * larger["model.context"]
    monkeypatch.chdir(tmp_path)
    few = [option for option in base if not option.startswith("model.") or "context" in option]
    ok("train", *few, "depth=2")
    config = reader.find(tmp_path / "run").config
    assert (config.n_layer, config.d_model, config.n_head, config.context) == (2, 128, 2, 32)
    assert "is finished" in ok("train", "run_dir=run", "resume=true", "depth=2")
    refused = run("train", *base, "depth=2", "run_dir=other")
    assert refused.status == 2 and "depth= sets model.n_layer" in refused.err


def gradients(model, rows, fail=lambda rows: False, recompute=False, seed=0, world=None):
    """The gradients of one step of eight rows; fail(rows) says where memory runs out."""
    if recompute:
        recompute_activations(model)
    model.train()

    def scarce(module, args, kwargs):
        if fail(len(args[0])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    model.register_forward_pre_hook(scarce, with_kwargs=True)
    micro = MicroBatches(model, rows, compute=CPU, world=world or parallel.World())
    ids = torch.randint(96, (8, 33), generator=torch.Generator().manual_seed(1))
    loss_sum = micro.backward(ids[:, :-1], ids[:, 1:], weight=torch.tensor(1 / 256), seed=seed)
    return micro, loss_sum, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("fits", [1, 2, 5])
def test_out_of_memory_halves_the_part_and_keeps_the_gradient(fits):
    _, whole_loss, whole = gradients(make("modern"), 8)
    micro, loss, found = gradients(make("modern"), 8, fail=lambda rows: rows > fits)
    assert micro.rows == {1: 1, 2: 2, 5: 4}[fits]
    torch.testing.assert_close(loss, whole_loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_out_of_memory_in_the_middle_of_a_step_counts_no_row_twice():
    calls = itertools.count()
    _, _, whole = gradients(make("modern"), 4)
    _, _, found = gradients(make("modern"), 4, fail=lambda rows: next(calls) == 1)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_out_of_memory_with_one_row_or_among_ranks_is_a_clear_error():
    with pytest.raises(InputError, match="one sequence at a time; set activation_checkpointing=true"):
        gradients(make("modern"), 8, fail=lambda rows: True)
    with pytest.raises(InputError, match=r"rank 1: .* set micro_batch=4, and resume=auto"):
        gradients(make("modern"), 8, fail=lambda rows: True, world=parallel.World(rank=1, size=2))


def test_another_error_is_not_taken_for_a_lack_of_memory():
    model = make("modern")
    model.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(RuntimeError("shape")))
    micro = MicroBatches(model, 8, compute=CPU, world=parallel.World())
    with pytest.raises(RuntimeError, match="shape"):
        micro.backward(torch.zeros(8, 4, dtype=torch.int64), torch.zeros(8, 4, dtype=torch.int64), weight=1.0, seed=0)


def test_a_run_goes_on_after_out_of_memory_with_the_same_step(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*base[:-2], "steps=6", "log_every=1", "optimizer=adamw"]
    ok("train", *options, "run_dir=plain")
    accumulate, failed = MicroBatches.accumulate, []

    def scarce(self, inputs, targets, weight, starts):
        if len(failed) == 0 and self.rows == 4:
            failed.append(self.rows)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(self, inputs, targets, weight, starts)

    monkeypatch.setattr(MicroBatches, "accumulate", scarce)
    out = ok("train", *options, "run_dir=scarce")
    assert "out of memory: from step 1 on 2 sequences a forward" in out
    one, two = (reader.find(tmp_path / name) for name in ("plain", "scarce"))
    for name, value in one.weights().items():
        torch.testing.assert_close(two.weights()[name], value, atol=1e-4, rtol=0)
    assert "micro_batch: 2" in (tmp_path / "scarce" / "config.yaml").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradient_dropout_included(family):
    _, loss, plain = gradients(make(family, dropout=0.2), 4)
    _, again, found = gradients(make(family, dropout=0.2), 4, recompute=True)
    assert torch.equal(loss, again)
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_recomputing_keeps_fewer_tensors_and_the_same_names():
    model, held = make("modern"), []
    names = set(model.state_dict())
    for recompute in (False, True):
        if recompute:
            recompute_activations(model)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model(torch.zeros(4, 48, dtype=torch.int64), targets=torch.zeros(4, 48, dtype=torch.int64))
        held.append(sum(sizes))
    assert held[1] < held[0] / 2 and set(model.state_dict()) == names


def test_auto_finds_a_divisor_that_fits_and_leaves_the_model_alone(monkeypatch):
    model = make("modern", n_layer=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert best_rows(model, 12, compute=CPU) in divisors(12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    monkeypatch.setattr("model.training.microbatch.speed_of", lambda part, ids, starts: float(len(ids)))
    assert best_rows(model, 12, compute=CPU) == 12
    monkeypatch.setattr("model.training.microbatch.speed_of", lambda part, ids, starts: 10.0 - abs(len(ids) - 4))
    assert best_rows(model, 16, compute=CPU) == 4

    def scarce(part, ids, starts):
        if len(ids) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return float(len(ids))

    monkeypatch.setattr("model.training.microbatch.speed_of", scarce)
    assert best_rows(model, 24, compute=CPU) == 4


def test_auto_and_recomputing_are_settled_in_the_config(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok("train", *base, "micro_batch=auto", "activation_checkpointing=true")
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert any(f"micro_batch: {rows}\n" in saved for rows in (1, 2, 4))
    refused = run("train", *base[:-1], "run_dir=other", "micro_batch=some")
    assert refused.status == 2 and "micro_batch='some' is not a number, null or auto" in refused.err


def test_peak_memory_is_seen():
    before = memory.peak(CPU.device)
    if before is None:
        pytest.skip("this system does not tell")
    memory.reset_peak(CPU.device)
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert memory.peak(CPU.device) - before > 0 or memory.peak(CPU.device) > held.numel() * 4
    assert math.isfinite(memory.available(CPU.device))


def test_a_dry_run_of_fine_tuning_leaves_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f'{{"prompt": "{number} to your", "completion": "body"}}\n' for number in range(20)]
    (tmp_path / "labels.jsonl").write_text("".join(lines))
    monkeypatch.setattr(
        "data.labelled.examples.WIDTH", 8
    )  # so that these rows can be shorter than the small model's context
    before = snapshot(tmp_path)
    out = ok("finetune", f"checkpoint={trained}", "examples=labels.jsonl", "steps=3", "batch_size=4", "dry_run=true")
    assert "tok/s" in out and "peak memory" in out and "no forecast" in out and snapshot(tmp_path) == before
    tokens = next(line for line in out.splitlines() if line.startswith("tokens"))
    assert int(tokens.split()[1]) < 4 * load(trained).model.config.context, tokens  # the examples are shorter than that


@pytest.mark.parametrize(
    "settings, copied",
    [
        ({"save_every": 5}, True),
        ({"eval_every": 5}, True),  # a better evaluation saves
        ({}, False),  # nothing is trained after the one save
        ({"save_every": 5, "save_in_background": False}, False),
        ({"save_every": 5, "device": "cuda"}, False),  # the copy is in the host's memory
    ],
)
def test_the_copy_that_is_written_while_training_goes_on_is_part_of_the_peak(settings, copied):
    device = torch.device(settings.pop("device", "cpu"))
    cfg = LoopConfig(steps=10, **settings)
    model = make("modern")
    deadline = Deadline(cfg.optimizer, steps=10, eval_every=cfg.eval_every, save_every=cfg.save_every)
    found = copied_bytes(cfg, model, deadline, Compute(device, torch.float32, False))
    assert found == (saved_bytes(cfg, model) if copied else 0)
