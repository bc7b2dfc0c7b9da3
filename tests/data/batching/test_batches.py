"""Batches: each window once per epoch, the same global batch for any number of ranks, targets are the next tokens."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from data import InputError
from data.batching.batches import IGNORE, WindowBatches, WindowEvaluation
from data.batching.order import permute
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import Tokens, open_split
from data.tokenizers.build import TokenizerConfig


def split_of(n_tokens: int):
    """A split whose token at position i is i, in shards of about 50."""
    tokens = Tokens(np.array_split(np.arange(n_tokens, dtype=np.uint32), max(1, n_tokens // 50)))
    return SimpleNamespace(
        name="train",
        directory="here",
        tokens=tokens,
        n_tokens=n_tokens,
        n_bytes=3 * n_tokens,
        unknown={},
        document_at=lambda position: f"document {position // 100}",
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_permute_is_a_permutation_that_differs_by_seed_and_epoch(size):
    orders = [permute(np.arange(size), size=size, seed=s, epoch=e).tolist() for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 10:
        assert orders[0] != orders[1] != orders[2] != orders[0] and orders[0] != sorted(orders[0])


def test_permute_of_some_positions_gives_the_same_items():
    whole = permute(np.arange(10**4), size=10**4, seed=3, epoch=5)
    assert np.array_equal(permute(np.arange(500, 600), size=10**4, seed=3, epoch=5), whole[500:600])
    huge = permute(np.arange(10), size=10**12, seed=3, epoch=5)
    assert len(set(huge.tolist())) == 10 and huge.max() > 10**10 and huge.min() >= 0


def test_permute_is_close_to_uniform():
    counts = Counter(int(permute(np.array([0]), size=6, seed=s, epoch=0)[0]) for s in range(3000))
    assert all(400 < counts[item] < 600 for item in range(6))


@pytest.mark.parametrize("n_tokens, context, batch_size", [(1000, 7, 4), (1000, 10, 13), (23, 11, 4), (12, 11, 3)])
def test_each_window_comes_exactly_once_per_epoch(n_tokens, context, batch_size):
    batches = WindowBatches(split_of(n_tokens), context=context, batch_size=batch_size, seed=1)
    windows = max(1, (n_tokens - 1) // context - 1)
    assert len(batches.parts[0]) == windows and batches.epochs(windows) == {"the corpus": batch_size}
    steps = range(3 * windows)
    starts = np.concatenate([batches.batch(step).inputs[:, 0] for step in steps])[: 3 * windows]
    offsets = set()
    for epoch in starts.reshape(3, windows):
        epoch = np.sort(epoch)
        assert np.array_equal(epoch, epoch[0] + context * np.arange(windows))
        offsets.add(int(epoch[0]))
    if windows > 20:
        assert len(offsets) > 1 and list(starts[:windows]) != sorted(starts[:windows])


def test_offsets_cover_all_possible_positions():
    batches = WindowBatches(split_of(24), context=5, batch_size=3, seed=0)  # 3 windows per epoch, 8 spare tokens
    first = {int(batches.batch(step).inputs[:, 0].min()) for step in range(300)}
    assert first == set(range(9))
    assert max(int(batches.batch(step).targets.max()) for step in range(300)) == 23


def test_targets_are_the_next_tokens():
    batch = WindowBatches(split_of(500), context=16, batch_size=8, seed=0).batch(3)
    assert batch.inputs.shape == batch.targets.shape == (8, 16)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert np.array_equal(batch.inputs, batch.inputs[:, :1] + np.arange(16))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_rows_of_all_ranks_make_up_the_global_batch(ranks):
    batches = WindowBatches(split_of(500), context=16, batch_size=8, seed=0)
    for step in (0, 5, 77):
        per_rank = 8 // ranks
        parts = [batches.batch(step, slice(rank * per_rank, (rank + 1) * per_rank)) for rank in range(ranks)]
        whole = batches.batch(step)
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
        assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)


def test_a_batch_is_a_function_of_seed_and_step():
    def inputs(seed, step):
        return WindowBatches(split_of(500), context=8, batch_size=4, seed=seed).batch(step).inputs

    assert np.array_equal(inputs(0, 9), inputs(0, 9))
    assert not np.array_equal(inputs(0, 9), inputs(1, 9)) and not np.array_equal(inputs(0, 9), inputs(0, 10))


def test_supervised_tokens_and_description():
    batches = WindowBatches(split_of(500), context=8, batch_size=4, seed=0)
    assert batches.supervised_tokens(2) == int((batches.batch(2).targets != IGNORE).sum())
    start = int(batches.batch(2).inputs[0, 0])
    assert f"document {start // 100} (token {start})" in batches.describe(2)


@pytest.mark.parametrize("n_tokens, context", [(101, 10), (105, 10), (2, 10), (11, 10), (12, 10)])
@pytest.mark.parametrize("rows", [1, 4])
def test_evaluation_covers_each_target_exactly_once(n_tokens, context, rows):
    evaluation = WindowEvaluation(split_of(n_tokens), context=context)
    seen: Counter[int] = Counter()
    for start in range(0, len(evaluation) + rows, rows):
        batch = evaluation.batch(start, start + rows)
        assert batch.inputs.shape == batch.targets.shape == (rows, context)
        real = batch.targets != IGNORE
        assert np.array_equal(batch.inputs[real] + 1, batch.targets[real]) and not batch.inputs[~real].any()
        seen.update(batch.targets[real].tolist())
    assert seen == Counter(range(1, n_tokens)) and evaluation.n_targets == n_tokens - 1


def test_bytes_of_a_prepared_split_are_those_of_its_text(tmp_path):
    (tmp_path / "a.txt").write_text("é" * 90 + "xy" * 5)
    config = PrepareConfig(corpus=str(tmp_path / "a.txt"), datasets=str(tmp_path), tokenizer=TokenizerConfig("byte"))
    directory = prepare(config, say=lambda line: None)
    assert WindowEvaluation(open_split(directory, "train"), context=8).n_bytes == 180
    evaluation = WindowEvaluation(open_split(directory, "val"), context=8)
    assert evaluation.n_bytes == 10 and evaluation.n_targets == 11
    assert WindowBatches(open_split(directory, "val"), context=8, batch_size=2, seed=0).describe(0).count("a.txt") == 2


def test_a_split_shorter_than_a_window_is_refused():
    with pytest.raises(InputError, match=r"40 tokens, fewer than model.context \+ 1 = 65: set model.context=39"):
        WindowBatches(split_of(40), context=64, batch_size=4, seed=0)
    with pytest.raises(InputError, match=r"16 tokens, fewer than model.context \+ 1 = 17: add text"):
        WindowBatches(split_of(16), context=16, batch_size=4, seed=0)
    WindowBatches(split_of(17), context=16, batch_size=4, seed=0).batch(0)
