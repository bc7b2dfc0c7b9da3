"""LanguageModel: text in, text out, and the lists that a completion holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from data.tokenizers.build import TokenizerConfig, build
from model import InputError
from model.device import Compute
from model.gpt import GPT
from model.inference.quantize import prepare_for_decoding
from model.inference.sampling import SamplingConfig
from model.language_model import LanguageModel
from model.next_word.distribution import split_prompt
from model.next_word.words import WordRule
from tests.families import make
from tests.model.inference.helpers import CPU, byte_model


def test_a_single_prompt_may_be_a_string_and_an_empty_one_starts_a_document():
    lm = byte_model()
    [one] = lm.generate("ab", max_new_tokens=6)
    assert one == lm.generate(["ab"], max_new_tokens=6)[0] == lm.generate([lm.encode("ab")], max_new_tokens=6)[0]
    [empty] = lm.generate("", max_new_tokens=6)
    assert empty == lm.generate([[lm.tokenizer.end_id]], max_new_tokens=6)[0]


def test_the_name_of_a_special_token_in_a_prompt_is_text():
    lm = byte_model()
    assert lm.tokenizer.end_id not in lm.encode("a<|endoftext|>b")
    [made] = lm.generate("a<|endoftext|>b", max_new_tokens=6)
    assert len(made.tokens) == 6


def test_a_character_that_the_tokenizer_never_saw_is_read_as_unknown():
    tokenizer = build(TokenizerConfig(kind="char"), ["abc"])
    lm = LanguageModel(make("modern", vocab_size=tokenizer.vocab_size), tokenizer, CPU, directory=Path())
    [strange] = lm.generate("aéb", max_new_tokens=5, seed=3)
    [other] = lm.generate("aøb", max_new_tokens=5, seed=3)
    assert strange.tokens == other.tokens


def test_lists_have_an_entry_per_token_and_leave_out_the_end():
    lm = byte_model("gpt2", n_layer=1)
    sampling = SamplingConfig(temperature=3.0)  # ends soon
    completions = lm.generate(["a"] * 40, max_new_tokens=60, sampling=sampling, top_logprobs=2, explain=True)
    assert {made.ended for made in completions} == {"end", "length"}
    for made in completions:
        assert lm.tokenizer.end_id not in made.tokens
        lists = (made.log_probabilities, made.model_log_probabilities, made.alternatives, made.explanation)
        assert all(len(entries) == len(made.tokens) for entries in lists)
        assert (len(made.tokens) == 60) == (made.ended == "length")
        assert lm.tokenizer.decode(made.tokens).startswith(made.text)
    rows = completions[0].explanation
    assert [row["text"] for row in rows] == [lm.token_text(token) for token in completions[0].tokens]
    for row, alternatives in zip(rows, completions[0].alternatives, strict=True):
        assert [other["text"] for other in row["alternatives"]] == [token.text for token in alternatives]
        assert row["rank"] >= 1 and row["probability"] == pytest.approx(row["filters"][0]["before"], abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "modern"])  # with a tied and an untied head
def test_repr_counts_each_parameter_once_however_weights_are_stored(family):
    tokenizer = build(TokenizerConfig(kind="byte"), [])
    state = torch.get_rng_state()
    for dtype in ("float32", "bfloat16", "int8"):
        model = make(family, vocab_size=tokenizer.vocab_size)
        count = sum(p.numel() for p in model.parameters())
        compute = Compute.for_decoding("cpu", dtype=dtype)
        torch.set_rng_state(state)
        lm = LanguageModel(prepare_for_decoding(model, compute), tokenizer, compute, directory=Path("out/x"))
        assert repr(lm) == f"<LanguageModel out/x: {count:,} parameters, 257 tokens>"
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_an_error_and_no_answer(monkeypatch, value, temperature):
    lm, head = byte_model(), GPT.head
    place = torch.arange(lm.tokenizer.vocab_size) == 5
    monkeypatch.setattr(GPT, "head", lambda self, h: head(self, h).masked_fill(place, value))  # as when it overflows
    sampling = SamplingConfig(temperature=temperature)
    for answer in (
        lambda: lm.next_tokens("ab", sampling=sampling),
        lambda: lm.next_words("ab", sampling=sampling),
        lambda: lm.continuations("ab"),
        lambda: lm.generate("ab", max_new_tokens=2, sampling=sampling),
        lambda: lm.generate(["ab", "abc"], max_new_tokens=2, sampling=sampling),
        lambda: list(lm.stream("ab", max_new_tokens=2, sampling=sampling)),
        lambda: lm.score("c", prompt="ab"),
        lambda: lm.choose("ab", ["c", "d"]),
    ):
        with pytest.raises(InputError, match="logits are not finite"):
            answer()


def test_a_start_token_stands_before_every_text():
    tokenizer = build(TokenizerConfig(kind="byte", special_tokens=["<s>"]), [])
    tokenizer.start_id = start = tokenizer.special_tokens["<s>"]
    lm = LanguageModel(make("modern", vocab_size=tokenizer.vocab_size), tokenizer, CPU, directory=Path())
    assert lm.encode("ab") == [start, 97, 98] and lm.encode("") == [start] == lm.encode(()) and lm.encode([97]) == [97]
    after_start = {token.id: token.probability for token in lm.next_tokens([start], top=tokenizer.vocab_size)}
    expected = pytest.approx(math.log(after_start[97]), abs=1e-5)
    assert lm.score("a").log_probability == expected and -lm.losses([[97]])[0] == expected
    ids, removed, _ = split_prompt("ab", lm.tables(WordRule()), encode=tokenizer.encode)
    assert (ids, removed) == ([start, 97], b"b")
