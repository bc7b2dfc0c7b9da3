"""Generation: text is reproducible, equal to full forwards in every way of making it, and explained."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import pytest
import torch

from data.tokenizers.build import TokenizerConfig, build
from model import InputError
from model.device import Compute
from model.inference.generate import generate
from model.inference.sampling import SamplingConfig, draw, probabilities
from model.inference.vocabulary import Vocabulary
from model.language_model import LanguageModel
from model.seeds import hash_seed
from tests.families import FAMILIES, make

CPU = Compute(torch.device("cpu"), torch.float32, compile=False)
GREEDY = SamplingConfig(temperature=0)


def run(model, prompts, **options):
    """The new ids of each row."""
    return [[new.id for new in row] for row in tokens(model, prompts, **options)]


def tokens(model, prompts, **options):
    rows = [[] for _ in prompts]
    for step in generate(model, prompts, **options):
        for row, new in zip(rows, step, strict=True):
            if new is not None:
                row.append(new)
    return rows


def vocabulary(end_id, size=96):
    return Vocabulary(tuple(bytes([i + 32]) for i in range(size)), {end_id: "<|end|>"}, end_id)


def byte_model(family="modern", **changes):
    """A random model that reads and writes bytes."""
    tokenizer = build(TokenizerConfig(kind="byte"), [])
    model = make(family, vocab_size=tokenizer.vocab_size, **changes)
    return LanguageModel(model, tokenizer, CPU, directory=None)


# The same text, however it is made


@torch.no_grad()
def differences(model, prompts, made, sampling, *, seed):
    """How many tokens differ from those that full forwards choose; all must be near ties: noised logits within 1e-3."""
    found = 0
    for row, (prompt, ids) in enumerate(zip(prompts, made, strict=True)):
        logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        probs = probabilities(logits, sampling)
        keys = [hash_seed(seed, row, position) for position in range(len(ids))]
        for position in (draw(probs, keys) != torch.tensor(ids)).nonzero().flatten().tolist():
            found += 1
            for shift in (-1e-3, 1e-3):  # a little more or less of the chosen token's logit decides it
                moved = logits[position : position + 1].clone()
                moved[0, ids[position]] += shift
                if draw(probabilities(moved, sampling), keys[position : position + 1]).item() == ids[position]:
                    break
            else:
                raise AssertionError(f"row {row}, position {position}: not a near tie")
    return found


def compare_ways(n_rows, length, families):
    """Tokens made and differences found, over single rows, a batch, a stream and speculative decoding."""
    made, drafted, found = 0, 0, defaultdict(int)
    settings = [SamplingConfig(), SamplingConfig(temperature=0.6, top_k=20, top_p=0.95), GREEDY]
    for number, family in enumerate(families):
        sampling = settings[number % len(settings)]
        lm = byte_model(family, context=length + 24)
        texts = ["Listen to your heart"[: 1 + row % 20] for row in range(n_rows)]
        prompts = [lm.encode(text) for text in texts]
        options = {"max_new_tokens": length, "sampling": sampling, "seed": 7}
        ways = {
            "batch": lm.complete(prompts, **options),
            "single": [lm.complete([p], indices=[i], **options)[0] for i, p in enumerate(prompts)],
            "speculative": lm.complete(prompts, speculative=True, **options),
        }
        for way, rows in ways.items():
            found[way] += differences(lm.model, prompts, [row.tokens for row in rows], sampling, seed=7)
        if not any(found.values()):  # no near tie
            assert len({str([row.tokens for row in rows]) for rows in ways.values()}) == 1
        assert "".join(lm.stream(texts[0], **options)) == ways["single"][0].text
        made += sum(len(row.tokens) for row in ways["batch"])
        drafted += sum(row.drafted for row in ways["speculative"])
    return made, drafted, dict(found)


def test_cached_batched_streamed_and_speculative_text_is_that_of_full_forwards():
    made, drafted, found = compare_ways(8, 40, FAMILIES)
    assert made > 1000 and drafted > 30 and max(found.values()) <= 2, found


@pytest.mark.slow
def test_ten_thousand_tokens_are_the_same_in_every_way():
    made, drafted, found = compare_ways(28, 110, FAMILIES)
    print(made, drafted, found)
    assert made > 10_000 and drafted > 300 and max(found.values()) <= 10, found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_then_scoring_gives_equal_log_probabilities(family):
    model = make(family)
    prompts = [[1, 2, 3], [4] * 20, [9]]
    sampling = SamplingConfig(temperature=0.8, top_k=30)
    for prompt, row in zip(prompts, tokens(model, prompts, max_new_tokens=20, seed=5, sampling=sampling), strict=True):
        ids = torch.tensor([new.id for new in row])
        logits = model(torch.tensor([prompt + ids.tolist()]))[0, len(prompt) - 1 : -1]
        for name, probs in (
            ("log_probability", probabilities(logits, sampling)),
            ("model_log_probability", logits.softmax(-1)),
        ):
            told = torch.tensor([getattr(new, name) for new in row])
            torch.testing.assert_close(told, probs.gather(-1, ids[:, None])[:, 0].log(), atol=1e-4, rtol=0)


# Rows


def test_rows_depend_on_their_own_prompt_seed_and_index_alone():
    model = make("modern")
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9], [1, 2, 3]]
    together = run(model, prompts, max_new_tokens=15, seed=3)
    assert run(model, prompts[:1], max_new_tokens=15, seed=3) == together[:1]
    assert run(model, prompts[1:], max_new_tokens=15, seed=3, indices=[1, 2]) == together[1:]
    assert run(model, prompts[::-1], max_new_tokens=15, seed=[9, 3, 4], indices=[2, 1, 0])[1] == together[1]
    assert together[0] != together[2]  # one prompt and seed, two indices
    assert run(model, prompts[:1], max_new_tokens=15, seed=4)[0] != together[0]
    assert run(model, prompts[:1], max_new_tokens=5, seed=3)[0] == together[0][:5]


def test_every_row_has_its_own_length():
    model = make("modern")
    prompts = [[1], [2, 3], [4]]
    made = tokens(model, prompts, max_new_tokens=[3, 12, 7], seed=2)
    assert [len(row) for row in made] == [3, 12, 7]
    assert all(new.ended is None for row in made for new in row[:-1]) and {row[-1].ended for row in made} == {"length"}
    assert [new.id for new in made[2]] == run(model, prompts, max_new_tokens=20, seed=2)[2][:7]


def test_rows_that_have_ended_leave_the_others_as_they_were():
    model = make("llama")
    prompts = [[n + 1, n, n + 2][: 1 + n % 3] for n in range(9)]
    limits = [4, 30, 9, 4, 60, 4, 17, 4, 60]  # two of them outgrow the context
    sampling = SamplingConfig(repetition_penalty=1.2, frequency_penalty=0.5, bad_words=("ab", "c"), min_new_tokens=3)
    options = {"sampling": sampling, "vocabulary": vocabulary(0), "seed": 6}
    together = tokens(model, prompts, max_new_tokens=limits, **options)
    for i, (row, limit) in enumerate(zip(together, limits, strict=True)):
        [alone] = tokens(model, [prompts[i]], max_new_tokens=limit, indices=[i], **options)
        assert [new.id for new in row] == [new.id for new in alone]
        assert row[-1].ended == "end" or len(row) == limit


def test_a_row_stops_at_its_end_token_and_others_go_on():
    model = make("modern")
    free = run(model, [[1, 2, 3], [4, 5]], max_new_tokens=30, seed=1)
    end = free[0][4]
    assert end not in free[0][:4]
    made = tokens(model, [[1, 2, 3], [4, 5]], max_new_tokens=30, seed=1, vocabulary=vocabulary(end))
    assert [new.id for new in made[0]] == free[0][:5] and made[0][-1].ended == "end" and made[0][-1].text == ""
    expected = free[1][: free[1].index(end) + 1] if end in free[1] else free[1]
    assert [new.id for new in made[1]] == expected


def test_a_finished_row_may_outlive_the_cache_of_its_neighbours():
    model = make("modern")  # context 48
    prompts = [[1] * 47, [2]]
    free = run(model, prompts, max_new_tokens=1, seed=1)
    made = run(model, prompts, max_new_tokens=40, seed=1, vocabulary=vocabulary(free[0][0]))
    assert made[0] == free[0]
    assert made[1] == run(model, [[7], [2]], max_new_tokens=40, seed=1, vocabulary=vocabulary(free[0][0]))[1]


def test_the_end_token_waits_for_min_new_tokens():
    model = make("modern")
    end = run(model, [[1, 2, 3]], max_new_tokens=5, sampling=GREEDY)[0][3]
    for least in (0, 3, 4, 10):
        sampling = SamplingConfig(temperature=0, min_new_tokens=least)
        [row] = tokens(model, [[1, 2, 3]], max_new_tokens=30, sampling=sampling, vocabulary=vocabulary(end))
        ids = [new.id for new in row]
        assert end not in ids[:least] and (least > 3 or len(ids) == 4)
    assert len(ids) > 10


# The end of the context


@torch.no_grad()
@pytest.mark.parametrize("speculative", [False, True])
def test_text_may_grow_beyond_the_context(speculative):
    model = make("gpt2")  # learned positions: nothing exists beyond 48
    [made] = run(model, [[1] * 40], max_new_tokens=60, sampling=GREEDY, speculative=speculative)
    assert len(made) == 60
    text = [1] * 40 + made
    window = text[:49][-25:]  # the first token beyond the context is chosen from the newest half
    assert made[9] == model(torch.tensor([window]))[0, -1].argmax().item()


def test_how_much_was_forgotten_is_told():
    model = make("modern")  # context 48
    rows = tokens(model, [[1] * 40, [1] * 60, [1]], max_new_tokens=[20, 2, 9])
    assert [new.forgotten for new in rows[0]] == [0] * 9 + [24] * 11
    assert [new.forgotten for new in rows[1]] == [12, 12 + 24] and rows[2][-1].forgotten == 0


def test_a_prompt_longer_than_the_context_counts_by_its_end():
    model = make("modern")
    long = [(7 * i) % 96 for i in range(100)]
    assert run(model, [long], max_new_tokens=5) == run(model, [long[-48:]], max_new_tokens=5)


def test_what_does_not_fit_the_context_is_refused_on_request():
    model = make("modern")
    assert len(run(model, [[1] * 40], max_new_tokens=8, on_overflow="error")[0]) == 8
    for length, limit in ((40, 9), (100, 1)):
        with pytest.raises(
            InputError, match=f"{length} tokens of prompt.*max_new_tokens={limit}.*context of 48.*on_overflow=slide"
        ):
            run(model, [[1], [1] * length], max_new_tokens=limit, on_overflow="error")


# What is told about a token


@torch.no_grad()
def test_alternatives_are_the_model_s_most_probable_tokens():
    model = make("llama")
    [row] = tokens(model, [[1, 2, 3]], max_new_tokens=6, top_logprobs=4, sampling=SamplingConfig(top_k=2))
    ids = [1, 2, 3]
    for new in row:
        best = model(torch.tensor([ids]))[0, -1].softmax(-1).topk(4)
        assert [token for token, _ in new.alternatives] == best.indices.tolist()
        torch.testing.assert_close(torch.tensor([p for _, p in new.alternatives]), best.values, atol=1e-5, rtol=0)
        ids.append(new.id)
    assert len(tokens(model, [[1]], max_new_tokens=1, top_logprobs=1000)[0][0].alternatives) == 96


def test_an_explanation_follows_the_probability_through_the_filters():
    sampling = SamplingConfig(temperature=0.8, top_k=10, top_p=0.9, repetition_penalty=1.5, bad_words=("A",))
    options = {"max_new_tokens": 12, "sampling": sampling, "vocabulary": vocabulary(0)}
    prompts = [[1, 2, 3], [9]]
    explained = tokens(make("modern"), prompts, explain=True, **options)
    plain = tokens(make("modern"), prompts, **options)
    for row, without in zip(explained, plain, strict=True):
        for new, same in zip(row, without, strict=True):
            assert new.id == same.id and same.rank is None and same.filters == []
            assert [f.name for f in new.filters] == ["constraints", "penalties", "temperature", "top_k", "top_p"]
            assert math.isclose(math.log(new.filters[0].before), new.model_log_probability, abs_tol=1e-4)
            assert math.isclose(math.log(new.filters[-1].after), new.log_probability, abs_tol=1e-4)
            assert all(one.after == other.before for one, other in pairwise(new.filters))
            constraints, penalties, temperature, top_k, top_p = new.filters
            assert 0 < constraints.removed < 1 and penalties.removed == temperature.removed == 0
            for one in (constraints, top_k, top_p):  # what is kept is scaled to a sum of 1
                assert math.isclose(one.after * (1 - one.removed), one.before, rel_tol=1e-3)
            assert 1 <= new.rank <= 96


def test_greedy_is_ranked_first():
    [row] = tokens(make("modern"), [[1, 2]], max_new_tokens=5, sampling=GREEDY, explain=True)
    for new in row:
        assert new.rank == 1 and new.log_probability == 0
        assert math.isclose(new.filters[0].removed, 1 - math.exp(new.model_log_probability), abs_tol=1e-5)


def test_penalties_look_at_the_prompt_or_the_new_text():
    model = make("modern")
    prompt = list(range(0, 90, 2))
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e9)
    [made] = run(model, [prompt], max_new_tokens=3, sampling=sampling)
    assert not set(made) & set(prompt)
    for penalty in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        [made] = run(model, [[1, 2]], max_new_tokens=96, sampling=SamplingConfig(temperature=0, **penalty))
        assert len(set(made)) == 96  # every token once; also those of the prompt
    few = make("modern", vocab_size=10)
    plain, penalized = (
        run(few, [[1]], max_new_tokens=5, sampling=SamplingConfig(temperature=0, repetition_penalty=penalty))[0]
        for penalty in (1, 1e9)
    )
    assert len(set(plain)) < 5 == len(set(penalized))


# Mistakes


@pytest.mark.parametrize(
    "prompts, options, part",
    [
        ([[]], {}, "empty prompt"),
        ([], {}, "empty prompt"),
        ([[1]], {"sampling": SamplingConfig(top_k=0)}, "top_k=0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"max_new_tokens": [3, 3]}, "max_new_tokens has 2 values for 1 prompts"),
        ([[1]], {"sampling": SamplingConfig(min_new_tokens=9)}, "min_new_tokens=9 is more than max_new_tokens=5"),
        ([[1]], {"on_overflow": "crash"}, "on_overflow='crash' is not one of slide, error"),
        ([[1], [2]], {"speculative": True}, "one prompt at a time, not 2"),
    ],
)
def test_mistakes_are_named(prompts, options, part):
    with pytest.raises(InputError, match=part):
        run(make("modern"), prompts, **({"max_new_tokens": 5} | options))


def test_what_runs_between_two_tokens_is_not_in_the_model_s_number_format():
    compute = Compute(torch.device("cpu"), torch.bfloat16, compile=False)
    for step in generate(make("modern"), [[1, 2, 3]], max_new_tokens=3, compute=compute):
        assert len(step) == 1 and not torch.is_autocast_enabled("cpu")


# From text to text


def test_one_prompt_may_be_a_string_and_an_empty_one_starts_a_document():
    lm = byte_model()
    [one] = lm.generate("ab", max_new_tokens=6)
    assert one.prompt == "ab" and one == lm.generate(["ab"], max_new_tokens=6)[0]
    [empty] = lm.generate("", max_new_tokens=6)
    assert empty.tokens == lm.complete([[lm.tokenizer.end_id]], max_new_tokens=6)[0].tokens


def test_a_special_token_s_name_in_a_prompt_is_text():
    lm = byte_model()
    assert lm.tokenizer.end_id not in lm.encode("a<|endoftext|>b")
    [made] = lm.generate("a<|endoftext|>b", max_new_tokens=6)
    assert made.prompt == "a<|endoftext|>b" and len(made.tokens) == 6


def test_a_character_that_the_tokenizer_never_saw_is_read_as_unknown():
    tokenizer = build(TokenizerConfig(kind="char"), ["abc"])
    lm = LanguageModel(make("modern", vocab_size=tokenizer.vocab_size), tokenizer, CPU, directory=None)
    [strange] = lm.generate("aéb", max_new_tokens=5, seed=3)
    [other] = lm.generate("aøb", max_new_tokens=5, seed=3)
    assert strange.tokens == other.tokens and strange.prompt == "aéb"


def test_lists_have_an_entry_a_token_and_leave_out_the_end():
    lm = byte_model(family="gpt2")
    sampling = SamplingConfig(temperature=3.0)  # ends soon
    made = lm.generate(["a"] * 40, max_new_tokens=60, sampling=sampling, top_logprobs=2, explain=True)
    assert {one.ended for one in made} == {"end", "length"}
    for one in made:
        assert lm.tokenizer.end_id not in one.tokens
        lists = (one.log_probabilities, one.model_log_probabilities, one.alternatives, one.explanation)
        assert all(len(entries) == len(one.tokens) for entries in lists)
        assert (len(one.tokens) == 60) == (one.ended == "length")
        assert lm.tokenizer.decode(one.tokens).startswith(one.text)
