"""Mixtures: exact proportions of the rows, each part's windows once per epoch of its own, for any number of ranks."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from data import InputError
from data.batching.batches import IGNORE
from data.batching.mixture import interleave, rows_per_part, validate, whole_numbers
from data.preparation.shards import Part
from model.training.measure import measure
from tests.data.batching.test_packing import batches_of, lengths_of, split_of
from tests.programs import NANO, ok, run


@pytest.mark.parametrize("weights", [[1], [3, 1], [1, 3], [1, 1, 1], [5, 2, 11, 7], [1, 1000]])
def test_proportions_are_exact_after_each_round_and_close_in_between(weights):
    total, seen = sum(weights), [0] * len(weights)
    for row in range(3 * total):
        assert seen == rows_per_part(row, weights)
        assert all(abs(s - row * w / total) < len(weights) for s, w in zip(seen, weights, strict=True))
        if row % total == 0:
            assert seen == [row // total * w for w in weights]
        part, before = interleave(row, weights)
        assert before == seen[part]
        seen[part] += 1


def test_a_distant_row_is_found_without_the_earlier_ones():
    weights = whole_numbers([0.7, 0.2, 0.1])
    assert weights == [7, 2, 1] and whole_numbers([3.0, 1]) == [3, 1] and whole_numbers([1e-9, 1]) == [1, 10**9]
    row = 10**18 * 10
    assert rows_per_part(row, weights) == [7 * 10**18, 2 * 10**18, 10**18] and interleave(row, weights)[1] >= 10**18


def two_parts(first=60, second=25):
    """Sixty documents of source a, then twenty-five of source b."""
    lengths = lengths_of(5, first + second)
    middle = 1 + sum(length + 1 for length in lengths[:first])
    parts = [Part("a", 0, middle), Part("b", middle, 1 + sum(length + 1 for length in lengths))]
    return split_of(lengths, parts=parts), middle


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_each_part_gets_its_rows_and_each_window_comes_once_per_epoch_of_its_part(packing):
    split, middle = two_parts()
    data = batches_of(split, packing=packing, mixture_weights=[1, 3], batch_size=6)
    sizes, steps = [len(part) for part in data.parts], 300
    rows = defaultdict(list)
    for step in range(steps):
        batch = data.batch(step)
        for targets in batch.targets:
            real = targets[targets != IGNORE]
            rows[int(real[0] >= middle)].append(tuple(real.tolist()))
            assert real.max() < middle or real.min() >= middle
    assert [len(rows[0]), len(rows[1])] == [450, 1350]
    assert data.epochs(steps) == {"a": 450 / sizes[0], "b": 1350 / sizes[1]}
    everything = [set(range(1, middle)), set(range(middle, split.n_tokens))]
    for part, size in enumerate(sizes):
        epochs = [rows[part][i : i + size] for i in range(0, len(rows[part]) - size, size)]
        for epoch in epochs:
            seen = Counter(target for window in epoch for target in window)
            assert set(seen.values()) == {1} and seen.keys() <= everything[part]
            assert packing == "stream" or seen.keys() == everything[part]
        assert len(epochs) > 1 and epochs[0] != epochs[1]
        if packing == "stream":  # over many epochs, each token is a target, also the first and last of the part
            first, last = (data.parts[part].pieces(np.arange(500), np.full(500, w)) for w in (0, size - 1))
            assert min(start + 1 for ((start, _),) in first) == min(everything[part])
            assert max(start + length for ((start, length),) in last) == max(everything[part])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_a_mixture_is_a_function_of_seed_and_step_for_any_number_of_ranks(ranks, packing):
    split, _ = two_parts()
    settings = {"packing": packing, "mixture_weights": [0.35, 0.65], "batch_size": 8, "document_mask": True}
    straight = batches_of(split, **settings)
    whole = [straight.batch(step) for step in range(30)]
    for step in (0, 7, 29):
        resumed, per_rank = batches_of(split, **settings), 8 // ranks
        parts = [resumed.batch(step, slice(rank * per_rank, (rank + 1) * per_rank)) for rank in range(ranks)]
        for expected, *pieces in zip(whole[step], *parts, strict=True):
            assert np.concatenate(pieces).tobytes() == expected.tobytes()
    assert not np.array_equal(whole[3].inputs, batches_of(split, **settings | {"seed": 1}).batch(3).inputs)


def test_parts_of_equal_size_have_different_orders():
    lengths = [9] * 80
    split = split_of(lengths, parts=[Part("a", 0, 401), Part("b", 401, 801)])
    data = batches_of(split, mixture_weights=[1, 1], batch_size=2, context=10)
    a, b = np.array([data.batch(step).targets[:, 0] for step in range(40)]).T
    assert sorted(a.tolist()) == list(range(1, 401, 10)) or sorted(b.tolist()) == list(range(1, 401, 10))
    assert (a % 400).tolist() != (b % 400).tolist()


def test_wrong_weights_are_refused():
    corpus = ["a", "b"]
    assert (
        validate(None, corpus) == validate([3, 1], corpus) == validate([0.5, 2.0], corpus) == validate([1], "a") == []
    )
    for weights in ([1], [1, 2, 3], 3, "a"):
        assert "give one number per source: corpus=[a,b] mixture_weights=[3,1]" in validate(weights, corpus)[0]
    for weights in ([1, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1], [1, "x"], [True, None]):
        assert "each must be a number above 0" in validate(weights, corpus)[0]
    with pytest.raises(InputError, match=r"has 2 numbers, but here has 1 part"):
        batches_of(split_of([20, 20]), mixture_weights=[1, 1])
    split = split_of([60, 3], parts=[Part("a", 0, 62), Part("b", 62, 66)])
    with pytest.raises(InputError, match=r"train split of b has 5 tokens, .* add text"):
        batches_of(split, packing="stream", mixture_weights=[1, 1])
    batches_of(split, packing="documents", mixture_weights=[1, 1])


def test_a_run_on_a_mixture_reports_the_epochs_of_each_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(measure.__kwdefaults__, "seconds", 0.0)
    (tmp_path / "a.txt").write_text("".join(f"{i} is less than {i + 1}.\n" for i in range(300)))
    (tmp_path / "b.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    base = [f"corpus=[{tmp_path}/a.txt,{tmp_path}/b.txt]", "datasets=datasets", *NANO, "steps=2"]
    for weights, message in (
        ("[3,1,2]", "mixture_weights=[3, 1, 2] is 3 numbers for 2 sources"),
        ("[3,-1]", "above 0"),
    ):
        refused = run("train", *base, "run_dir=x", f"mixture_weights={weights}")
        assert refused.status == 2 and refused.err.count("\n") == 1 and message in refused.err
    planned = ok("train", *base, "mixture_weights=[3,1]", "dry_run=true")
    (line,) = [line for line in planned.splitlines() if line.startswith("epochs")]
    assert "over" in line and "a.txt" in line and "b.txt" in line
    out = ok("train", *base, "mixture_weights=[3,1]", "run_dir=run", "packing=documents")
    assert "(epochs: " in out and out.count("a.txt") >= 2
    assert all("75.0% of the rows" in text and "25.0% of the rows" in text for text in (planned, out))
