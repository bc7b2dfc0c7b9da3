"""The prior in the network: a model that has learned nothing is the n-gram model, in every way of asking it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import train
from data import ngrams
from data.batches import WindowEvaluation
from data.shards import open_split
from model.cache import KVCache
from model.config import ModelConfig
from model.device import Compute
from model.evaluate import evaluate
from model.ngram import NGramPrior, recent
from model.tree import TreeCache

from .families import make
from .programs import NANO, ok, one_line, run
from .test_ngrams import by_hand, split, text

SIZE = 12


@pytest.fixture(autouse=True)
def count_all(monkeypatch):
    monkeypatch.setattr(ngrams, "TOKENS_PER_CONTEXT", 1)


@pytest.fixture
def counted():
    """A text, and a prior that has counted it."""
    ids = text(SIZE, 1500)
    found = ngrams.count(split(ids), vocab_size=SIZE, length=3)
    prior = NGramPrior(length=3, contexts=len(found.keys), vocab_size=SIZE)
    prior.fill(torch.from_numpy(found.keys), torch.from_numpy(found.log_p))
    return ids, prior


def test_the_longest_known_context_answers(counted):
    ids, prior = counted
    p, contexts = by_hand(ids, SIZE, 3)
    asked = torch.randint(0, SIZE, (2, 200), generator=torch.Generator().manual_seed(0))  # SIZE - 1 was never seen
    log_p = prior(prior.rows(recent(asked, 3)))
    lengths = set()
    for row, position in torch.cartesian_prod(torch.arange(2), torch.arange(200)).tolist():
        before = tuple(asked[row, max(0, position - 2) : position + 1].tolist())
        while before not in contexts:
            before = before[1:]
        lengths.add(len(before))
        wanted = [math.log(p(token, before)) for token in range(SIZE)]
        assert log_p[row, position].tolist() == pytest.approx(wanted, abs=4e-3)
    assert lengths == {0, 1, 2, 3}


def test_recent_tokens_are_newest_first_and_end_where_the_window_begins():
    assert recent(torch.tensor([[5, 6, 7, 8]]), 3)[0].tolist() == [[5, -1, -1], [6, 5, -1], [7, 6, 5], [8, 7, 6]]
    assert recent(torch.tensor([[5]]), 3)[0].tolist() == [[5, -1, -1]]


def test_a_cache_knows_what_came_before_in_each_row():
    cache = KVCache(ModelConfig(vocab_size=9, n_layer=1), 2, capacity=6, device=torch.device("cpu"))
    cache.begin(2)
    cache.recent(torch.tensor([[1, 2], [3, 9]]), 3)
    cache.length.copy_(torch.tensor([2, 1]))  # the 9 was padding
    cache.begin(2)
    found = cache.recent(torch.tensor([[4, 5], [6, 7]]), 3)
    assert found.tolist() == [[[4, 2, 1], [5, 4, 2]], [[6, 3, -1], [7, 6, 3]]]


def test_a_tree_knows_the_ancestors_of_each_node():
    cache = TreeCache(ModelConfig(vocab_size=9, n_layer=1), 1, capacity=3, device=torch.device("cpu"))
    cache.place(torch.arange(2), torch.ones(2, 2).tril().bool())
    cache.begin(2)
    assert cache.recent(torch.tensor([[1, 2]]), 4)[0].tolist() == [[1, -1, -1, -1], [2, 1, -1, -1]]
    cache.place(torch.tensor([2, 2]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1]]).bool())  # beyond its capacity
    cache.begin(2)
    assert cache.recent(torch.tensor([[3, 4]]), 4)[0].tolist() == [[3, 2, 1, -1], [4, 2, 1, -1]]
    cache.place(torch.tensor([3]), torch.tensor([[1, 1, 1, 0, 1]]).bool())
    cache.begin(1)
    assert cache.recent(torch.tensor([[5]]), 4)[0].tolist() == [[5, 3, 2, 1]]


def test_a_window_is_a_function_of_its_own_tokens():
    model = make("ngram")
    ids = torch.randint(0, 96, (20, 30), generator=torch.Generator().manual_seed(1))
    whole, window = model.hidden(ids).row, model.hidden(ids[:, 10:]).row
    assert torch.equal(window[:, 0], model.hidden(ids[:, 10:11]).row[:, 0])
    assert not torch.equal(window[:, 0], whole[:, 10]) and torch.equal(window[:, 1:], whole[:, 11:])


@pytest.fixture
def arguments(poem, tmp_path):
    return [f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO, "val_fraction=0.2", "model.ngram=2"]


def test_an_untrained_model_scores_as_the_ngrams_it_was_given(arguments, tmp_path):
    run_dir = tmp_path / "run"
    ok("train", *arguments, f"run_dir={run_dir}", "steps=1")
    (prepared,) = (path for path in (tmp_path / "datasets").iterdir() if path.is_dir())
    train_split, val_split = open_split(prepared, "train"), open_split(prepared, "val")
    config = json.loads((run_dir / "step_00000001" / "model.json").read_text())
    size, context = config["vocab_size"], config["context"]
    shape = ModelConfig(**(config | {"ngram_contexts": 0}))
    torch.manual_seed(0)
    model = train.new_model(shape, train_split)
    data = WindowEvaluation(val_split, context=context)
    found = evaluate(model, data, compute=Compute.resolve("cpu", dtype="float32"), rows=8)

    p, _ = by_hand(train_split.tokens[:].tolist(), size, 2)
    inputs, targets, _ = data.batch(0, len(data))
    nats = [
        -math.log(p(target, tuple(row[max(0, position - 1) : position + 1].tolist())))
        for row, wanted in zip(inputs, targets, strict=True)
        for position, target in enumerate(wanted.tolist())
        if target >= 0
    ]
    assert len(nats) == found.tokens
    assert found.loss == pytest.approx(sum(nats) / len(nats), abs=0.01)
    assert found.loss < math.log(size) - 0.5


def test_a_prior_is_saved_and_taken_over_as_it_is(arguments, poem, tmp_path):
    whole, parts, tuned = (tmp_path / name for name in ("whole", "parts", "tuned"))
    said = ok("train", *arguments, f"run_dir={whole}", "steps=4", "average=tail")
    assert "2 tokens of context" in said
    saved = load_file(whole / "step_00000004" / "model.safetensors")
    assert saved["prior.table"].dtype == torch.float16 and saved["prior.keys"][0] == 1

    ok("train", *arguments, f"run_dir={parts}", "steps=2", "average=tail")
    ok("train", f"run_dir={parts}", "steps=4", "resume=true")
    resumed = load_file(parts / "step_00000004" / "model.safetensors")
    assert torch.equal(resumed["prior.table"], saved["prior.table"])

    other = tmp_path / "other.txt"
    other.write_text(poem.read_text()[::-1])
    places = [f"corpus={other}", f"run_dir={tuned}", *arguments[1:2], "device=cpu", "dtype=float32", "batch_size=4"]
    ok("train", *places, f"checkpoint={whole}", "steps=2", "eval_every=1")
    again = load_file(tuned / "step_00000002" / "model.safetensors")
    assert torch.equal(again["prior.table"], saved["prior.table"])
    assert not torch.equal(again["embed.weight"], saved["embed.weight"])
    ok("train", f"run_dir={tuned}", "steps=3", "resume=true")
    said = ok("sample", f"checkpoint={tuned}", "prompt=an", "mode=next_token", "top=3", "device=cpu")
    assert len(said.splitlines()) == 2 + 3


def test_the_table_cannot_be_set_by_hand(arguments, tmp_path):
    line = one_line(run("train", *arguments, f"run_dir={tmp_path / 'run'}", "model.ngram_contexts=5"))
    assert "model.ngram" in line
