"""Document packing: each token once per epoch, best-fit windows, attention that stays within a document."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import InputError
from data.batching.batches import IGNORE, WindowBatches
from data.batching.packing import DocumentWindows, pack
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import Part, Tokens, open_split
from data.tokenizers.build import TokenizerConfig
from model.distributed.stop_signal import StopSignal
from model.training.evaluate import to_device
from model.training.measure import measure
from tests.families import FAMILIES, make
from tests.programs import NANO, ok, run
from tests.toy_training import digest

END = 95  # of the tests' vocabulary of 96


def split_of(lengths, *, parts=None, ids=None):
    """A split of documents with these lengths; the token at position i is i, or ids(n)[i] between end tokens."""
    offsets = 1 + np.cumsum([0, *(length + 1 for length in lengths)])
    tokens = np.arange(offsets[-1], dtype=np.uint32)
    if ids is not None:
        tokens[:] = ids(len(tokens))
        tokens[offsets - 1] = END
    return SimpleNamespace(
        name="train",
        directory="here",
        tokens=Tokens(np.array_split(tokens, 3)),
        n_tokens=len(tokens),
        end_id=int(tokens[0]),
        document_offsets=offsets[:-1].tolist(),
        document_at=lambda position: f"document {np.searchsorted(offsets, position, side='right') - 1}",
        parts=parts or [Part("", 0, len(tokens))],
    )


def batches_of(split, *, context=16, batch_size=4, seed=0, **settings):
    settings = {"packing": "documents"} | settings
    return WindowBatches(split, context=context, batch_size=batch_size, seed=seed, **settings)


def lengths_of(seed, count=200, longest=100):
    generator = np.random.default_rng(seed)
    return (generator.pareto(1.0, count) * 8).astype(int).clip(0, longest).tolist()


def naive(sizes, capacity):
    """Best-fit decreasing, item by item. Returns the room left in each bin, sorted."""
    left = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, room in enumerate(left) if room >= size]
        if fitting:
            left[min(fitting, key=left.__getitem__)] -= size
        else:
            left.append(capacity - size)
    return sorted(left)


@pytest.mark.parametrize("seed", range(20))
def test_pack_is_best_fit_decreasing(seed):
    generator = np.random.default_rng(seed)
    capacity = int(generator.integers(1, 60))
    sizes = generator.integers(1, capacity + 1, int(generator.integers(1, 300)))
    if seed % 2:
        sizes = np.minimum(sizes, generator.integers(1, capacity + 1, len(sizes)))  # smaller ones, many per bin
    bins = pack(sizes, capacity)
    assert sorted(set(bins.tolist())) == list(range(bins.max() + 1))
    assert sorted((capacity - np.bincount(bins, weights=sizes)).astype(int).tolist()) == naive(sizes, capacity)
    assert np.array_equal(bins, pack(sizes, capacity))


def test_packing_nothing_makes_no_bin():
    assert pack(np.array([], np.int64), 8).tolist() == []
    assert len(batches_of(split_of([15, 31])).parts[0]) == 3  # with their end tokens, whole windows only


@pytest.mark.parametrize("context", [1, 7, 16, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_each_token_is_a_target_exactly_once_per_epoch(seed, context):
    split = split_of(lengths_of(seed))
    data = batches_of(split, context=context, batch_size=5, seed=seed)
    windows = len(data.parts[0])
    rows = [row for step in range(-(-3 * windows // 5)) for row in zip(*data.batch(step)[:2], strict=True)]
    orders = []
    for epoch in range(3):
        inputs, targets = (np.stack(rows_of) for rows_of in zip(*rows[epoch * windows :][:windows], strict=True))
        real = targets != IGNORE
        assert Counter(targets[real].tolist()) == Counter(range(1, split.n_tokens))
        assert np.array_equal(inputs[real] + 1, targets[real]) and not inputs[~real].any()
        assert data.parts[0].utilization == real.mean()
        orders.append(targets[:, 0].tolist())
    assert windows < 10 or (orders[0] != orders[1] != orders[2])


def test_long_documents_are_cut_and_only_remainders_share_windows():
    lengths = [40, 3, 15, 0, 100, 7]
    data = batches_of(split_of(lengths))
    part = data.parts[0]
    pieces = part.pieces(np.zeros(len(part), np.int64), np.arange(len(part)))
    whole = [window[0] for window in pieces if window[0][1] == 16]
    assert whole == [(0, 16), (16, 16), (45, 16), *((62 + 16 * i, 16) for i in range(6))]
    packed = [window for window in pieces if window[0][1] < 16]
    assert sorted(piece for window in packed for piece in window) == [(32, 9), (41, 4), (61, 1), (158, 5), (163, 8)]
    assert all(sum(length for _, length in window) <= 16 for window in packed) and len(packed) == 2
    assert part.documents == 6 and part.divided == 2 and "none cropped" in data.report()[0]
    assert "2 longer than a window" in data.report()[0]
    assert all(f"document {number} " in "".join(map(data.describe, range(3))) for number in range(6))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"document_mask": True}, {"document_mask": True, "packing": "stream"}])
def test_the_global_batch_depends_neither_on_the_ranks_nor_on_the_first_step(ranks, settings):
    split = split_of(lengths_of(1), ids=lambda n: np.arange(n) % 90)
    straight = [batches_of(split, batch_size=8, **settings).batch(step) for step in range(40)]
    for step in (0, 5, 39):  # also past an epoch
        resumed, per_rank = batches_of(split, batch_size=8, **settings), 8 // ranks
        parts = [resumed.batch(step, slice(rank * per_rank, (rank + 1) * per_rank)) for rank in range(ranks)]
        for whole, *pieces in zip(straight[step], *parts, strict=True):
            assert (whole is None and pieces == [None] * ranks) or (np.concatenate(pieces).tobytes() == whole.tobytes())
        assert resumed.supervised_tokens(step) == int((straight[step].targets != IGNORE).sum())
    assert not np.array_equal(straight[0].inputs, batches_of(split, batch_size=8, seed=1).batch(0).inputs)


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_doc_starts_are_the_indices_of_each_document_s_first_input(packing):
    split = split_of(lengths_of(2), ids=lambda n: np.arange(n) % 90)
    data = batches_of(split, context=32, packing=packing, document_mask=True)
    shared = 0
    for step in range(20):
        inputs, _, doc_starts = data.batch(step)
        for row in range(4):
            for place in range(32):
                starts = place == 0 or inputs[row, place] == END or doc_starts[row, place] == place
                assert doc_starts[row, place] == (place if starts else doc_starts[row, place - 1])
            pieces = data.pieces(step)[row]
            first = np.cumsum([0, *(length for _, length in pieces)])[: len(pieces)]
            assert (doc_starts[row, first] == first).all()
            shared += len(set(doc_starts[row].tolist())) > 2
    assert shared > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_with_a_document_mask_equal_documents_by_themselves(family):
    """Loss and gradient of packed rows equal those of the pieces with one piece per row."""
    ids = np.random.default_rng(0).integers(0, END, 4000)
    data = batches_of(split_of(lengths_of(3, 60), ids=lambda n: ids[:n]), context=48, document_mask=True)
    results = []
    for alone in (False, True):
        model, total = make(family), torch.zeros(())
        for step in range(-(-len(data.parts[0]) // 4)):
            if alone:
                for piece in (piece for pieces in data.pieces(step) for piece in pieces):
                    row = torch.from_numpy(data.split.tokens[piece[0] : sum(piece) + 1].astype(np.int64))[None]
                    total = total + model(row[:, :-1], targets=row[:, 1:])
            else:
                inputs, targets, documents = to_device(data.batch(step), torch.device("cpu"))
                total = total + model(inputs, documents=documents, targets=targets)
        total = total / data.parts[0].targets
        total.backward()
        results.append((total.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (packed_loss, packed), (loss, gradients) = results
    torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    inputs, _, documents = to_device(data.batch(0), torch.device("cpu"))
    assert not torch.allclose(model(inputs), model(inputs, documents=documents), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_document_s_logits_do_not_depend_on_its_neighbours(dtype):
    model = make("modern").to(dtype)
    ids = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([0, 12, 32]).repeat(2, 1)
    changed = ids.clone()
    changed[:, :12], changed[:, 32:] = changed[:, :12].flip(1), 0
    before, after = (model(rows, documents=documents)[:, 12:32] for rows in (ids, changed))
    assert torch.equal(before, after)


def test_each_token_of_a_prepared_corpus_is_a_target_once(tmp_path):
    (tmp_path / "texts").mkdir()
    for number, length in enumerate(lengths_of(4, 50)):
        (tmp_path / "texts" / f"{number:02}.txt").write_text("".join(chr(97 + i % 26) for i in range(length + 1)))
    config = PrepareConfig(corpus=str(tmp_path / "texts"), datasets=str(tmp_path), tokenizer=TokenizerConfig("byte"))
    split = open_split(prepare(config, say=lambda line: None), "train")
    data = batches_of(split, batch_size=1)
    targets = np.concatenate([data.batch(step).targets.ravel() for step in range(len(data.parts[0]))])
    assert Counter(targets[targets != IGNORE].tolist()) == Counter(split.tokens[1:].tolist())


def test_a_part_without_documents_is_refused():
    with pytest.raises(InputError, match="train split of b has no document"):
        DocumentWindows(split_of([5, 5]), Part("b", 13, 13), context=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_document_packing_reports_its_windows_and_resumes_bit_for_bit(tmp_path, monkeypatch, compiled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(measure.__kwdefaults__, "seconds", 0.0)
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} and {number} is {2 * number}. " * (1 + number % 3))
    options = ["corpus=texts", *NANO, "packing=documents", f"compile={str(compiled).lower()}", "steps=4", "log_every=1"]
    planned = ok("train", *options, "dry_run=true")
    assert "% used" in planned and "% padding; none cropped" in planned
    out = ok("train", *options, "run_dir=whole", "document_mask=true")
    assert "% used" in out and "document_mask: true" in (tmp_path / "whole" / "config.yaml").read_text()
    steps = iter(range(1, 99))
    with monkeypatch.context() as patched:
        patched.setattr(StopSignal, "agreed", lambda self: next(steps) == 2)
        assert "stopped after step 2" in ok("train", *options, "run_dir=parts", "document_mask=true")
    ok("train", "run_dir=parts", "resume=true")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    ok("train", *options, "run_dir=open")
    assert digest(tmp_path / "open") != digest(tmp_path / "whole")
    refused = run("train", "run_dir=parts", "resume=true", "packing=stream")
    assert refused.status == 2 and "packing=stream, but the run in parts has documents" in refused.err
    refused = run("train", *options, "run_dir=x", "packing=paragraphs")
    assert refused.status == 2 and "packing='paragraphs' is not one of stream, documents" in refused.err
