"""Non-finite updates and spikes are skipped, counted and reported."""

from __future__ import annotations

import torch

from model.training.skip_updates import NON_FINITE, OVERFLOW, SPIKE, LossScale, UpdateGuard

ONE = torch.tensor(1.0)


def test_the_guard_counts_overflows_separately():
    cpu = torch.device("cpu")
    guard, plain = UpdateGuard(cpu), LossScale(torch.float32, cpu)
    flags = [
        bool(guard.check(torch.tensor(norm), step, plain)) for step, norm in enumerate([1, float("nan"), float("inf")])
    ]
    assert flags == [False, True, True]
    guard.sync_to_host()
    assert (
        guard.consecutive_bad == guard.counts[NON_FINITE] == guard.last_step[NON_FINITE] == 2
        and guard.counts[OVERFLOW] == 0
    )
    guard.check(ONE, 3, plain)
    guard.sync_to_host()
    assert guard.consecutive_bad == 0 and guard.counts[NON_FINITE] == guard.last_step[NON_FINITE] == 2
    guard, half = UpdateGuard(cpu), LossScale(torch.float16, cpu)
    assert bool(guard.check(torch.tensor(float("inf")), 0, half))
    guard.sync_to_host()
    assert guard.consecutive_bad == guard.counts[NON_FINITE] == 0 and guard.counts[OVERFLOW] == 1
    half.scale.fill_(1.0)  # no scale left to lower: bad
    assert bool(guard.check(torch.tensor(float("inf")), 1, half))
    guard.sync_to_host()
    assert guard.consecutive_bad == guard.counts[NON_FINITE] == guard.counts[OVERFLOW] == 1
    for step in range(12):
        guard.check(torch.tensor(float("nan")), step, plain)
    assert guard.report(limit=99, describe=str) == [
        "warning: skipped 13 update(s) with a non-finite gradient, the last at step 12: 11"
    ]
    assert guard.report(limit=99, describe=str) == []


def spiking(deviations: float, *, jump: int) -> tuple[UpdateGuard, list[bool]]:
    """The decisions over 120 noisy updates: one has ten times the loss, and all from `jump` on have twice the loss."""
    cpu = torch.device("cpu")
    guard, plain = UpdateGuard(cpu, spike_deviations=deviations), LossScale(torch.float32, cpu)
    generator = torch.Generator().manual_seed(0)
    flags = []
    for step in range(120):
        norm, loss = 1 + 0.1 * torch.rand(2, generator=generator)
        level = 10 if step == 70 else 2 if step >= jump else 1
        flags.append(bool(guard.check(norm, step, plain, loss=loss * level)))
    return guard, flags


def test_spikes_are_skipped_on_request_and_a_lasting_shift_is_absorbed():
    _, flags = spiking(0.0, jump=99)
    assert not any(flags)
    guard, flags = spiking(6.0, jump=999)
    assert [step for step, flag in enumerate(flags) if flag] == [70]
    [warning] = guard.report(limit=10, describe=lambda step: f"batch of step {step}")
    assert "a spike" in warning and "step 71: batch of step 70" in warning
    _, flags = spiking(6.0, jump=90)
    assert flags[90] and not any(flags[105:])


def test_a_restored_guard_decides_the_same():
    guard, _ = spiking(6.0, jump=999)
    other = UpdateGuard(torch.device("cpu"), spike_deviations=6.0)
    other.load_state_dict({name: value.clone() for name, value in guard.state_dict().items()})
    for level in (1.0, 1.2, 3.0, 1.0, float("nan"), 1.3):
        for one in (guard, other):
            one.check(torch.tensor(level), 0, LossScale(torch.float32, torch.device("cpu")), loss=torch.tensor(level))
        assert all(torch.equal(guard.state_dict()[name], value) for name, value in other.state_dict().items())
        guard.sync_to_host(), other.sync_to_host()
        assert guard.counts[SPIKE] - 1 == other.counts[SPIKE] and guard.counts[NON_FINITE] == other.counts[NON_FINITE]
