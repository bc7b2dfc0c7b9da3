"""Gradient accumulation: the gradient does not depend on the micro-batch, out-of-memory included."""

from __future__ import annotations

import itertools

import pytest
import torch

from model import InputError
from model.checkpoints import reader
from model.device import Compute
from model.distributed import parallel
from model.training.microbatch import MicroBatches, best_micro_batch_size, divisors, recompute_activations
from tests.families import FAMILIES, make
from tests.programs import ok

CPU = Compute.resolve("cpu", dtype="float32")


def gradients(model, rows, fail=lambda rows: False, recompute=False, seed=0, world=None):
    """The gradients of one step of eight rows; fail(rows) is True if memory runs out."""
    if recompute:
        recompute_activations(model)
    model.train()

    def scarce(module, args, kwargs):
        if fail(len(args[0])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    model.register_forward_pre_hook(scarce, with_kwargs=True)
    micro = MicroBatches(model, rows, compute=CPU, world=world or parallel.World())
    ids = torch.randint(96, (8, 33), generator=torch.Generator().manual_seed(1))
    loss_sum = micro.backward(ids[:, :-1], ids[:, 1:], loss_weight=torch.tensor(1 / 256), seed=seed)
    return micro, loss_sum, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("fits", [1, 2, 5])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(fits):
    _, whole_loss, whole = gradients(make("modern"), 8)
    micro, loss, found = gradients(make("modern"), 8, fail=lambda rows: rows > fits)
    assert micro.micro_batch_size == {1: 1, 2: 2, 5: 4}[fits]
    torch.testing.assert_close(loss, whole_loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_out_of_memory_in_the_middle_of_a_step_counts_no_row_twice():
    calls = itertools.count()
    _, _, whole = gradients(make("modern"), 4)
    _, _, found = gradients(make("modern"), 4, fail=lambda rows: next(calls) == 1)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_out_of_memory_with_one_row_or_several_ranks_is_a_clear_error():
    with pytest.raises(InputError, match="one sequence at a time; set activation_checkpointing=true"):
        gradients(make("modern"), 8, fail=lambda rows: True)
    with pytest.raises(InputError, match=r"rank 1: .* set micro_batch=4, and resume=auto"):
        gradients(make("modern"), 8, fail=lambda rows: True, world=parallel.World(rank=1, size=2))


def test_another_error_is_not_mistaken_for_out_of_memory():
    model = make("modern")
    model.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(RuntimeError("shape")))
    micro = MicroBatches(model, 8, compute=CPU, world=parallel.World())
    with pytest.raises(RuntimeError, match="shape"):
        micro.backward(
            torch.zeros(8, 4, dtype=torch.int64), torch.zeros(8, 4, dtype=torch.int64), loss_weight=1.0, seed=0
        )


def test_a_run_continues_after_out_of_memory_with_the_same_updates(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*base[:-2], "steps=6", "log_every=1", "optimizer=adamw"]
    ok("train", *options, "run_dir=plain")
    accumulate, failed = MicroBatches.accumulate, []

    def scarce(self, inputs, targets, weight, starts):
        if len(failed) == 0 and self.micro_batch_size == 4:
            failed.append(self.micro_batch_size)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(self, inputs, targets, weight, starts)

    monkeypatch.setattr(MicroBatches, "accumulate", scarce)
    out = ok("train", *options, "run_dir=scarce")
    assert "out of memory: micro_batch=2 from step 1" in out
    one, two = (reader.find(tmp_path / name) for name in ("plain", "scarce"))
    for name, value in one.weights().items():
        torch.testing.assert_close(two.weights()[name], value, atol=1e-4, rtol=0)
    assert "micro_batch: 2" in (tmp_path / "scarce" / "config.yaml").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_gives_the_same_gradient_with_dropout(family):
    _, loss, plain = gradients(make(family, dropout=0.2), 4)
    _, again, found = gradients(make(family, dropout=0.2), 4, recompute=True)
    assert torch.equal(loss, again)
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_activation_checkpointing_keeps_fewer_tensors_and_the_same_names():
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


def test_auto_finds_a_divisor_that_fits_and_leaves_the_model_unchanged(monkeypatch):
    model = make("modern", n_layer=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert best_micro_batch_size(model, 6, compute=CPU) in divisors(6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    monkeypatch.setattr("model.planning.memory.release", lambda device: None)  # takes most of the time
    monkeypatch.setattr("model.training.microbatch.sequences_per_second", lambda _, ids, starts: float(len(ids)))
    assert best_micro_batch_size(model, 12, compute=CPU) == 12
    monkeypatch.setattr(
        "model.training.microbatch.sequences_per_second",
        lambda _, ids, starts: 10.0 - abs(len(ids) - 4),
    )
    assert best_micro_batch_size(model, 16, compute=CPU) == 4

    def scarce(micro_batches, ids, documents):
        if len(ids) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return float(len(ids))

    monkeypatch.setattr("model.training.microbatch.sequences_per_second", scarce)
    assert best_micro_batch_size(model, 24, compute=CPU) == 4
