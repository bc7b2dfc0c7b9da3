"""Weight averaging: the mean is evaluated and saved, and training continues from the live weights."""

from __future__ import annotations

import pytest
import torch

from model import InputError
from model.checkpoints import reader
from model.training.average import WeightAverage
from tests.families import make
from tests.programs import ok, run


def path(kind: str, steps: int, **settings: float) -> tuple[list[float], WeightAverage]:
    """The mean after each step of a model whose weight is the number of the step."""
    model = make("modern", n_layer=1)
    average, seen = WeightAverage(model, kind, **settings), []
    for step in range(1, steps + 1):
        model.embed.weight.data.fill_(step)
        average.update(step, steps)
        with average.applied():
            seen.append(model.embed.weight[0, 0].item())
        assert (model.embed.weight == step).all()
    return seen, average


def test_tail_is_the_plain_mean_of_the_last_steps():
    seen, _ = path("tail", 20, fraction=0.25)
    assert seen[:15] == list(range(1, 16))  # before the tail starts, the weights are their own mean
    assert seen[15:] == pytest.approx([sum(range(16, step + 1)) / (step - 15) for step in range(16, 21)])


def test_an_extended_run_starts_another_tail():
    model = make("modern", n_layer=1)
    average = WeightAverage(model, "tail", fraction=0.1)
    for step in range(1, 41):
        model.embed.weight.data.fill_(step)
        average.update(step, 20 if step <= 20 else 40)
        with average.applied():
            seen = model.embed.weight[0, 0].item()
        assert seen == (
            19.5 if step == 20 else pytest.approx(sum(range(37, step + 1)) / (step - 36)) if step > 36 else step
        )


def test_ema_starts_as_a_plain_mean_and_then_forgets():
    seen, _ = path("ema", 40, decay=0.9)
    assert seen[:10] == pytest.approx([(step + 1) / 2 for step in range(1, 11)])
    mean = 5.5
    for step in range(11, 41):
        mean += 0.1 * (step - mean)
    assert seen[-1] == pytest.approx(mean, rel=1e-5)


def test_none_keeps_nothing():
    seen, average = path("none", 5)
    assert seen == [1, 2, 3, 4, 5] and average.state_dict() == {} and not average.mean


def test_the_live_weights_come_back_bit_for_bit():
    model = make("gpt2")
    average = WeightAverage(model, "ema")
    average.update(1, 9)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average.update(2, 9)
    for _ in range(3):
        with average.applied():
            assert not torch.equal(model.embed.weight, before["embed.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_saved_average_without_live_weights_is_refused():
    model = make("modern", n_layer=1)
    with pytest.raises(InputError, match=r"lacks the live weights of 'embed\.weight'"):
        WeightAverage(model, "ema").load_state_dict({"average.count": torch.tensor(3)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "tail"])
def test_averaging_changes_no_update_and_resumes_bit_for_bit(base, monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)
    options = [*base[:-2], "steps=8", "eval_every=4", "model.dropout=0.1", "optimizer.learning_rate=0.1"]
    mean = [f"weight_average={kind}", "ema_decay=0.5", "tail_fraction=0.75"]
    ok("train", *options, "run_dir=plain", "keep_last=9", "save_every=1")
    ok("train", *options, "run_dir=straight", *mean)
    halves = ok("train", *options, "run_dir=halved", *mean, "save_every=5", "keep_last=9")
    assert "finished" in halves
    for step in (6, 7, 8):
        for found in (tmp_path / "halved").glob(f"step_{step:08d}"):
            found.rename(tmp_path / f"away-{step}")
    assert "at step 5" in ok("train", "run_dir=halved", "resume=true")

    one, two = reader.find(tmp_path / "straight"), reader.find(tmp_path / "halved")
    assert reader.sha256(one.directory / "model.safetensors") == reader.sha256(two.directory / "model.safetensors")
    # The live weights are those of a run without averaging; the model's are the mean of its last steps.
    plain = {step: reader.verify(tmp_path / f"plain/step_{step:08d}").weights() for step in range(1, 9)}
    tensors, _ = one.train_state()
    assert all(torch.equal(tensors[f"raw.{name}"], value) for name, value in plain[8].items())
    expected = sum(plain[step]["embed.weight"] for step in range(3, 9)) / 6
    if kind == "tail":
        torch.testing.assert_close(one.weights()["embed.weight"], expected, atol=1e-6, rtol=0)
    assert not torch.equal(one.weights()["embed.weight"], plain[8]["embed.weight"])


def test_wrong_settings_are_reported(base):
    refused = run("train", *base, "weight_average=mean", "ema_decay=1", "tail_fraction=0")
    assert refused.status == 2
    for part in ("average='mean' is not one of none, ema, tail", "ema_decay=1", "tail_fraction=0"):
        assert part in refused.err
