"""The distribution of the next word: prompts, filters, limits, agreement with the model's own probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from model import InputError
from model.inference.sampling import SamplingConfig
from model.inference.vocabulary import Vocabulary
from model.next_word.distribution import next_word_distribution, next_word_steps, split_prompt
from model.next_word.word_table import Tables
from model.next_word.words import State, WordRule
from tests.families import FAMILIES, make

CHARACTERS = "ab ,'\n"
CHAR = Vocabulary((*(letter.encode() for letter in CHARACTERS), b""), {len(CHARACTERS): "<|end|>"}, len(CHARACTERS))


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(letter) for letter in text]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_character_models_word_is_the_product_of_its_characters(family):
    model = make(family, vocab_size=len(CHAR.tokens), context=24)
    prompt = "b,"
    found = next_word_distribution(
        model, Tables(CHAR), prompt, encode=encode, top=5, max_expansions=3000, tolerance=0.0
    )
    assert found.stopped == "certified"

    @torch.no_grad()
    def next_probabilities(text: str) -> Tensor:
        return torch.softmax(model(torch.tensor([encode(text)]))[0, -1].double(), -1)

    for row in found.words:
        if row.kind != "word":
            continue
        product = 0.0
        for lead in ("", " "):
            text, mass = prompt + lead, next_probabilities(prompt)[encode(" ")].item() if lead else 1.0
            for letter in row.word:
                mass *= next_probabilities(text)[CHARACTERS.index(letter)].item()
                text += letter
            ends = next_probabilities(text)
            after = 1 - ends[encode("ab'")].sum().item()
            apostrophe = next_probabilities(text + "'")
            after += ends[encode("'")].item() * (1 - apostrophe[encode("ab")].sum().item())
            product += mass * after
        assert row.lower - 1e-6 <= product <= row.upper + 1e-6, row


def ask(prompt: str, **options):
    model = make("modern", vocab_size=len(CHAR.tokens), context=24)
    return next_word_distribution(
        model, Tables(CHAR), prompt, encode=encode, **({"top": 5, "tolerance": 0.0, "max_expansions": 2000} | options)
    )


def test_trailing_spaces_change_nothing():
    assert ask("ab b") == ask("ab b ") == ask("ab b   ")
    assert ask("ab b", ignore_trailing_spaces=False) == ask("ab b")
    assert ask("ab b ", ignore_trailing_spaces=False) != ask("ab b")


def test_exact_bytes_keep_the_trailing_space():
    """After `b ` every outcome follows the space, and none continues the prompt's word."""
    found = ask("b ", ignore_trailing_spaces=False)
    assert found.continues == 0
    assert ask("b").continues > 0


def test_the_search_says_why_it_stopped():
    assert ask("b").stopped == "certified"
    assert ask("b", max_expansions=2).stopped == "max_tokens"
    assert ask("b", max_expansions=2).evaluated == 2
    loose = ask("b", tolerance=0.9, top=40)
    assert loose.stopped == "tolerance" and 0 < loose.unexplored <= 0.9
    assert sum(row.lower for row in ask("b", top=10**6, tolerance=0.05).words) >= 0.95


def test_lower_bounds_and_unexplored_mass_sum_to_one():
    found = ask("b", top=10**6, tolerance=0.01)
    assert sum(row.lower for row in found.words) + found.unexplored == pytest.approx(1, abs=1e-9)


def test_filters_apply_to_every_token():
    greedy = ask("b", sampling=SamplingConfig(temperature=0))
    assert [row.lower for row in greedy.words] == pytest.approx([1.0])
    narrow = ask("b", sampling=SamplingConfig(top_k=2), top=100)
    assert len(narrow.words) < len(ask("b", top=100).words)


def test_there_are_no_words_if_no_outcome_can_begin():
    """The most probable letters all continue the prompt's word."""

    class Stuck(torch.nn.Module):
        config = make("modern", vocab_size=len(CHAR.tokens), context=24).config
        embed = torch.nn.Embedding(1, 1)

        def hidden(self, ids: Tensor, cache: object) -> Tensor:
            return ids[..., None].float()

        def head(self, h: Tensor) -> Tensor:
            return torch.tensor([0.0, 9.0, -9.0, -9.0, -9.0, -9.0, -9.0]).expand(len(h), -1)

    greedy = SamplingConfig(temperature=0)
    found = next_word_distribution(Stuck(), Tables(CHAR), "b", encode=encode, sampling=greedy)  # type: ignore[arg-type]
    assert (found.words, found.continues, found.unexplored, found.stopped) == ([], 1.0, 0.0, "certified")


def test_without_filters_a_sampling_config_changes_nothing():
    assert ask("b", sampling=SamplingConfig()) == ask("b")


def test_a_prompt_longer_than_the_context_is_truncated_on_the_left():
    assert ask("ab " * 50 + "ab a b, b a").words == ask("b " * 70 + "ab " * 50 + "ab a b, b a").words


def test_an_empty_prompt_is_the_start_of_a_text():
    assert ask("") == ask("  ")
    assert split_prompt("", Tables(CHAR), encode=encode) == ([CHAR.end_id], b"", State("before_word"))
    assert split_prompt("ab ", Tables(CHAR), encode=encode) == ([0], b"b", State("prompt", context="letter"))
    assert split_prompt("a", Tables(CHAR), encode=encode) == ([CHAR.end_id], b"a", State("prompt", context="letter"))


def test_wrong_settings_are_refused_together():
    with pytest.raises(InputError) as caught:
        ask("b", top=0, max_expansions=0, tolerance=2)
    assert len(caught.value.args) == 3


@pytest.mark.parametrize("sampling", [None, SamplingConfig(temperature=0), SamplingConfig(top_k=2)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_give_an_error_and_no_certificate(value, sampling):
    model = make("modern", vocab_size=len(CHAR.tokens), context=24)
    with torch.no_grad():
        model.lm_head.weight[1] = value
    with pytest.raises(InputError, match="not finite"):
        next_word_distribution(model, Tables(CHAR), "ab", encode=encode, sampling=sampling)


def test_a_rule_reaches_the_search():
    model = make("modern", vocab_size=len(CHAR.tokens), context=24)
    tables = Tables(CHAR, WordRule(kind="character"))
    found = next_word_distribution(model, tables, "ab", encode=encode, top=7)
    assert {row.word for row in found.words} <= {*CHARACTERS, "<|end|>"}
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([encode("a") + encode("b")]))[0, -1].double(), -1)
    expected = sorted(probabilities.tolist(), reverse=True)
    assert [row.lower for row in found.words] == pytest.approx(expected[:7], abs=1e-5)


def test_bounds_only_tighten_from_step_to_step_and_the_last_table_is_the_answer():
    model = make("modern", vocab_size=len(CHAR.tokens), context=24)
    options = {"encode": encode, "top": 5, "tolerance": 0.0, "max_expansions": 400}
    tables = [table() for _, table in next_word_steps(model, Tables(CHAR), "b,", **options)]
    assert tables[-1] == next_word_distribution(model, Tables(CHAR), "b,", **options)
    assert len(tables) > 2 and {table.stopped for table in tables[:-1]} == {"searching"}
    for before, after in itertools.pairwise(tables):
        assert after.unexplored < before.unexplored
        earlier = {(row.kind, row.word): row for row in before.words}
        for row in after.words:
            if known := earlier.get((row.kind, row.word)):
                assert known.lower - 1e-12 <= row.lower and row.upper <= known.upper + 1e-12
