"""Rows: special tokens only where a template has them, weights, and packing without loss or contamination."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from data import InputError
from data.batching.batches import IGNORE
from data.labelled.examples import Example
from data.labelled.rows import ExampleBatches, ExampleEvaluation, Rows, draws, pack
from data.labelled.templates import ChatTemplate, Segment
from data.tokenizers.build import TokenizerConfig, build
from model.training.evaluate import to_device
from tests.families import make

TEMPLATE = ChatTemplate({"user": ("<|user|>", ""), "assistant": ("<|bot|>", "<|endoftext|>")})


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "allow_special"])
def tokenizer(request):
    config = TokenizerConfig(kind="byte", special_tokens=["<|user|>", "<|bot|>"], allow_special=request.param)
    return build(config, [])


def chat(*texts: str) -> Example:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return Example("".join(texts[:-1]), texts[-1], chat=TEMPLATE.segments(messages))


def test_special_tokens_count_in_the_template_and_nowhere_else(tokenizer):
    rows = Rows([chat("say <|bot|>", "no<|endoftext|>", "ok?", "yes")], tokenizer, context=80)
    special = tokenizer.special_tokens
    expected = [
        special["<|user|>"], *tokenizer.encode_ordinary(["say <|bot|>"])[0],
        special["<|bot|>"], *b"no<|endoftext|>", special["<|endoftext|>"],
        special["<|user|>"], *b"ok?", special["<|bot|>"], *b"yes", special["<|endoftext|>"],
    ]  # fmt: skip
    assert rows.ids[0].tolist() == expected
    learned = "".join(text for text, with_loss in rows.tokens(0) if with_loss)
    assert learned == "no<|endoftext|><|endoftext|>yes<|endoftext|>"
    assert rows.n_targets[0] == len("no<|endoftext|>") + 1 + len("yes") + 1
    assert tokenizer.decode(rows.prompt_ids(0)).endswith("ok?<|bot|>")


def test_a_long_chat_is_cut_on_the_left_but_never_in_an_answer(tokenizer):
    fits = Rows([chat("x" * 30, "yes")], tokenizer, context=20)
    assert len(fits.ids[0]) == 21 and fits.truncated and fits.n_targets[0] == 4
    with pytest.raises(InputError, match="none of the 1 examples"):
        Rows([chat("q", "long answer", "x" * 30, "yes")], tokenizer, context=40)


def test_weights_say_how_often_an_epoch_draws_an_example(tokenizer):
    assert draws([1, 1, 1]).tolist() == [1, 1, 1] and draws([2, 1, 0, 1]).tolist() == [2, 1, 0, 1]
    counts = draws(np.linspace(0.1, 3, 101))
    share = np.linspace(0.1, 3, 101) * 101 / np.linspace(0.1, 3, 101).sum()
    assert counts.sum() == 101 and np.abs(counts - share).max() < 1
    examples = [Example("p", "a", weight=3.0), Example("p", "b", weight=1.0), Example("p", "c", weight=0.0)]
    data = ExampleBatches(Rows(examples, tokenizer, context=32), batch_size=1, seed=0)
    drawn = Counter(chr(data.batch(step).targets[0, 0]) for step in range(len(data)))
    assert drawn["c"] == 0 and drawn["a"] > drawn["b"] and len(data) == 3
    with pytest.raises(InputError, match="all weights are 0"):
        ExampleBatches(Rows([Example("p", "a", weight=0.0)], tokenizer, context=32), batch_size=1, seed=0)


def test_packing_loses_nothing_and_fills_rows():
    lengths = np.random.default_rng(0).integers(3, 60, 300)
    rows = pack(lengths, range(300), 64)
    assert sorted(index for row in rows for index in row) == list(range(300))
    used = np.array([lengths[row].sum() for row in rows])
    fewest = max(int((lengths > 32).sum()), -(-int(lengths.sum()) // 64))
    assert used.max() <= 64 and len(rows) <= 1.05 * fewest


def mixed_examples() -> list[Example]:
    random = np.random.default_rng(1)
    return [
        Example("p" * int(a) + f"{i}", "abcde"[: int(b)])
        for i, (a, b) in enumerate(random.integers([1, 1], [25, 6], (24, 2)))
    ]


@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_packed_and_unpacked_examples_have_the_same_loss_and_gradient(tokenizer, family):
    rows = Rows(mixed_examples(), tokenizer, context=48)
    results = []
    for packing in ("none", "packed"):
        data = ExampleBatches(rows, batch_size=1, seed=0, packing=packing)
        model = make(family, vocab_size=tokenizer.vocab_size)
        total = torch.zeros(())
        for step in range(len(data)):
            inputs, targets, documents = to_device(data.batch(step), torch.device("cpu"))
            loss = model(inputs, targets=targets, documents=documents)
            loss.backward()
            total += loss.detach()
        results.append((len(data), total / rows.n_targets.sum(), [p.grad for p in model.parameters()]))
    (n_unpacked, unpacked, gradients), (n_packed, packed, packed_gradients) = results
    assert n_packed < n_unpacked / 2 and abs(unpacked - packed) < 1e-5
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for one, other in zip(gradients, packed_gradients, strict=True):
        assert float((one - other).abs().max()) < 1e-4 * max(1.0, largest)


def test_no_prompt_token_has_a_gradient(tokenizer):
    """The logits' gradient is exactly zero wherever the next token is not learned."""
    rows = Rows([Example("some prompt", "answer"), chat("a", "b", "c", "d")], tokenizer, context=48)
    model = make("modern", vocab_size=tokenizer.vocab_size)
    batch = rows.batch([[0], [1]], width=48)
    h = model.hidden(torch.from_numpy(batch.inputs))
    logits = model.head(h)
    logits.retain_grad()
    targets = torch.from_numpy(batch.targets)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE).backward()
    has_gradient = (logits.grad != 0).any(-1)
    assert torch.equal(has_gradient, targets != IGNORE)
    assert int(has_gradient.sum()) == len("answer") + 1 + 2 * (1 + 1) == int(rows.n_targets.sum())


def test_evaluation_counts_the_bytes_of_the_answers(tokenizer):
    evaluation = ExampleEvaluation(Rows([Example("p", "né"), chat("a", "bc", "d", "e")], tokenizer, context=48))
    assert evaluation.n_bytes == 3 + 2 + 1 and evaluation.n_targets == 4 + 3 + 2
    batch = evaluation.batch(1, 4)
    assert batch.inputs.shape[0] == 3 and (batch.targets[1:] == IGNORE).all()


def test_an_empty_prompt_gets_an_end_token(tokenizer):
    rows = Rows([Example("", "x")], tokenizer, context=8)
    assert rows.ids[0].tolist() == [tokenizer.end_id, ord("x"), tokenizer.end_id]
    answer_first = Example("", "x", chat=(Segment("x", learned=True), Segment("<|endoftext|>", True, True)))
    assert Rows([answer_first], tokenizer, context=8).ids[0].tolist() == rows.ids[0].tolist()


def test_a_start_token_stands_before_every_prompt_but_not_before_a_chat():
    tokenizer = build(TokenizerConfig(kind="byte", special_tokens=["<s>"]), [])
    tokenizer.start_id = start = tokenizer.special_tokens["<s>"]
    rows = Rows([Example("p", "x"), Example("", "x"), chat("a", "b")], tokenizer, context=8)
    assert [ids.tolist() for ids in rows.ids[:2]] == [
        [start, ord("p"), ord("x"), tokenizer.end_id],
        [start, ord("x"), tokenizer.end_id],
    ]
    assert [learned.tolist() for learned in rows.learned[:2]] == [[False, False, True, True], [False, True, True]]
    assert start not in rows.ids[2]
    assert rows.prompt_ids(0).tolist() == [start, ord("p")]


@pytest.mark.parametrize("packing", ["none", "packed"])
def test_the_context_of_examples_is_their_longest_row_and_not_the_models(tokenizer, packing):
    rows = Rows([Example("a" * n, "b") for n in (3, 9, 5)], tokenizer, context=100)
    batches = ExampleBatches(rows, batch_size=3, seed=1, packing=packing, one_width=True)
    assert batches.context == batches.batch(0)[0].shape[1] < 100
