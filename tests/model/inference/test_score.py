"""Scores equal those of a full forward, alone or in a batch, in one window or in many."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from data.tokenizers.build import TokenizerConfig, build
from model import InputError
from model.device import Compute
from model.inference import score as scoring
from model.inference.score import log_probabilities
from model.language_model import LanguageModel
from tests.families import FAMILIES, make

CPU = Compute(torch.device("cpu"), torch.float32, compile=False)
TEXT = "Listen to your heart. Listen to your gut, your body; listen to the wind. "


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = build(TokenizerConfig(kind="bpe", vocab_size=300), [TEXT * 3])
    return LanguageModel(make("modern", vocab_size=tokenizer.vocab_size), tokenizer, CPU, Path())


@torch.no_grad()
def plain(model, prefix, targets):
    """One forward over everything; prefix and targets fit the context."""
    ids = torch.tensor([[*prefix, *targets]])
    return torch.log_softmax(model(ids)[0].double(), dim=-1)[len(prefix) - 1 : -1]  # (targets, V)


def ids(seed, length):
    return torch.randint(96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_full_forward_alone_and_in_a_batch(family):
    model = make(family)
    texts = [([1], ids(1, 47)), ([2, 3], [5]), ([2, 3], [6]), ([2, 3], [5, 7]), (ids(2, 40), ids(3, 8)), ([2], [3, 5])]
    for (prefix, targets), figures in zip(texts, log_probabilities(model, texts, compute=CPU), strict=True):
        expected = plain(model, prefix, targets)
        chosen = expected[range(len(targets)), targets]
        assert [row[0] for row in figures] == pytest.approx(chosen.tolist(), abs=2e-4)
        entropy = -(expected.exp() * expected).sum(-1)
        assert [row[2] for row in figures] == pytest.approx(entropy.tolist(), abs=2e-4)
        assert [row[1] for row in figures] == ((expected > chosen[:, None] + 1e-7).sum(-1) + 1).tolist()
        [alone] = log_probabilities(model, [(prefix, targets)], compute=CPU)
        assert [row[0] for row in alone] == pytest.approx([row[0] for row in figures], abs=1e-4)


@pytest.mark.parametrize("n_prefix, n_targets", [(1, 48), (1, 49), (1, 200), (30, 60), (100, 60), (100, 1), (48, 25)])
@pytest.mark.parametrize("context", [48, 47])
@torch.no_grad()
def test_every_token_of_a_long_text_sees_at_least_half_a_context(context, n_prefix, n_targets):
    model = make("gpt2", context=context, n_layer=1)  # learned positions: nothing exists beyond the context
    text = ids(n_prefix + n_targets, n_prefix + n_targets)
    [figures] = log_probabilities(model, [(text[:n_prefix], text[n_prefix:])], compute=CPU)
    # The log-probability of each token after every possible window: by_start[s, t] is of text[s + t + 1].
    padded = torch.tensor(text + [0] * context)
    views = padded.unfold(0, context + 1, 1)[: len(text) - 1]  # (starts, context + 1)
    by_start = torch.log_softmax(model(views[:, :-1]), -1).gather(-1, views[:, 1:, None])[..., 0]
    for place, figure in enumerate(figures, start=n_prefix):
        least, most = min(place, math.ceil(context / 2)), min(place, context)
        if place <= context and len(text) <= context + 1:
            least = most  # a text that fits is seen whole
        possible = [by_start[place - seen, seen - 1].item() for seen in range(least, most + 1)]
        assert min(abs(figure.log_probability - value) for value in possible) < 1e-4, place


def test_a_long_prompt_is_truncated_on_the_left(lm):
    prompt = TEXT * 5
    best = lm.next_tokens(prompt, top=1)[0]
    [figures] = log_probabilities(lm.model, [(lm.encode(prompt), [best.id])], compute=CPU)
    assert figures[0][0] == pytest.approx(math.log(best.probability), abs=1e-4) and figures[0][1] == 1


def test_decoding_then_scoring_gives_the_same_log_probabilities(lm):
    [made] = lm.generate(["Listen"], max_new_tokens=20, seed=3)
    [figures] = log_probabilities(lm.model, [(lm.encode("Listen"), made.tokens)], compute=CPU)
    assert [row[0] for row in figures] == pytest.approx(made.log_probabilities, abs=1e-4)


def test_a_score_is_the_sum_of_its_tokens_and_they_join_to_the_text(lm):
    for text in ("Listen to your heart", "naïve 🤖 你好\r\n", "<|endoftext|>", " "):
        score = lm.score(text, prompt="Listen")
        assert "".join(token.text for token in score.tokens) == text == score.text
        assert score.log_probability == pytest.approx(sum(token.log_probability for token in score.tokens))
        assert score.bits_per_byte == pytest.approx(-score.log_probability / math.log(2) / len(text.encode()))
    start = lm.score("Listen")
    [figures] = log_probabilities(lm.model, [([lm.tokenizer.end_id], lm.tokenizer.encode("Listen"))], compute=CPU)
    assert [token.log_probability for token in start.tokens] == [row[0] for row in figures]
    assert start.prompt == ""


def test_trailing_spaces_of_the_prompt_move_to_the_text(lm):
    a, b = lm.score("your", prompt="Listen to "), lm.score(" your", prompt="Listen to")
    assert a == b and a.text == " your" and a.prompt == "Listen to"
    assert lm.choose("Listen to  ", ["your"])[0].log_probability == pytest.approx(
        lm.choose("Listen to", ["  your"])[0].log_probability, abs=1e-5
    )


def test_only_a_text_without_a_prompt_starts_a_document(lm):
    start, (a, b) = [lm.tokenizer.end_id], map(lm.encode, ("to be", " or not"))
    known = log_probabilities(lm.model, [([*start, *a], b), (a, b)], compute=lm.compute)
    after_start, after_prompt = (math.fsum(figure.log_probability for figure in figures) for figures in known)
    assert lm.score("to be or not").log_probability == pytest.approx(lm.score("to be").log_probability + after_start)
    assert lm.score(" or not", prompt="to be").log_probability == pytest.approx(after_prompt)
    assert abs(after_start - after_prompt) > 1e-3


def test_options_are_compared_by_three_measures(lm):
    options, prompt, neutral = [" your", " the wind", " heart"], "Listen to", "wind"
    raw = [lm.score(option, prompt=prompt).log_probability for option in options]
    base = [lm.score(option, prompt=neutral).log_probability for option in options]
    columns = {"raw": raw, "normalised": [], "pmi": [r - b for r, b in zip(raw, base, strict=True)]}
    columns["normalised"] = [r / len(option) for r, option in zip(raw, options, strict=True)]
    for method, expected in columns.items():
        got = lm.choose(prompt, options, method=method, neutral=neutral)
        assert [row.option for row in got] == options
        for row, values in zip(got, zip(*columns.values(), strict=True), strict=True):
            assert (row.log_probability, row.per_byte, row.pmi) == pytest.approx(values, abs=1e-4)
        total = sum(math.exp(value) for value in expected)
        assert [row.probability for row in got] == pytest.approx([math.exp(v) / total for v in expected], abs=1e-4)
    start = [lm.score(option).log_probability for option in options]
    assert [row.pmi for row in lm.choose(prompt, options)] == pytest.approx(
        [r - b for r, b in zip(raw, start, strict=True)], abs=1e-4
    )


def test_many_questions_at_once_get_the_scores_of_single_ones(lm):
    questions = [("Listen to", [" your", " the"]), ("", ["Listen", "L", "xyz"]), (TEXT * 4, [" gut"])]
    for (prompt, options), together in zip(questions, lm.choose_each(questions), strict=True):
        alone = lm.choose(prompt, options)
        assert [row.option for row in together] == options
        for a, b in zip(alone, together, strict=True):
            assert (a.log_probability, a.pmi, a.probability) == pytest.approx(
                (b.log_probability, b.pmi, b.probability), abs=1e-4
            )


def test_all_tokens_of_the_vocabulary_are_options_that_sum_to_one():
    figures = log_probabilities(make("llama"), [([1, 2], [token]) for token in range(96)], compute=CPU)
    assert sum(math.exp(row[0][0]) for row in figures) == pytest.approx(1, abs=1e-5)
    assert sorted(row[0][1] for row in figures) == list(range(1, 97))


def test_prefixes_of_other_rows_share_their_forward(monkeypatch):
    model, shapes = make("modern"), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids: shapes.append(tuple(ids.shape)) or hidden(ids))
    log_probabilities(model, [([1, 2, 3], [token]) for token in range(50)], compute=CPU)
    texts = [([1, 2, 3], [5]), ([1, 2, 3], [6, 7, 8]), ([1, 2], [3, 9]), ([1, 4], [3]), ([1], [2]), ([1, 2], [4])]
    log_probabilities(model, texts, compute=CPU)
    assert shapes == [(1, 3), (2, 5)]


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(scoring, "TOKENS_PER_FORWARD", 50)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 200)
    model, shapes = make("modern"), []
    texts = [([1], ids(n, n)) for n in range(1, 48, 5)]
    expected = [plain(model, *text)[range(len(text[1])), text[1]].tolist() for text in texts]
    hidden, head = model.hidden, model.head
    monkeypatch.setattr(model, "hidden", lambda ids: shapes.append(tuple(ids.shape)) or hidden(ids))
    monkeypatch.setattr(model, "head", lambda h: shapes.append((len(h), 25)) or head(h))
    for found, values in zip(log_probabilities(model, texts, compute=CPU), expected, strict=True):
        assert [row[0] for row in found] == pytest.approx(values, abs=2e-4)
    assert max(rows * width for rows, width in shapes) <= 50 and len(shapes) > 4


def test_wrong_arguments_are_refused_in_one_line(lm):
    with pytest.raises(InputError, match="no text to score after the prompt 'a'"):
        lm.score("", prompt="a")
    with pytest.raises(InputError, match="method='best' is not one of raw, normalised, pmi"):
        lm.choose("a", ["b"], method="best")
    for options in ([], ["a", ""]):
        with pytest.raises(InputError, match="none of them empty"):
            lm.choose("a", options)
