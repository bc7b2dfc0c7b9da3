"""Generation: reproducible, and equal to full forwards whether cached, batched, streamed or speculative."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from model import InputError
from model.device import Compute
from model.inference.generate import generate
from model.inference.sampling import SamplingConfig, draw, probabilities
from model.seeds import hash_seed
from tests.families import FAMILIES, make
from tests.model.inference.helpers import GREEDY, ascii_vocabulary, byte_model, new_ids, new_tokens

# The same text in every mode


@torch.no_grad()
def count_near_ties(model, prompts, rows, sampling, *, seed):
    """The number of tokens that differ from a full forward's choice. Each must be a near tie: a logit off by 1e-3."""
    found = 0
    for row, (prompt, ids) in enumerate(zip(prompts, rows, strict=True)):
        if not ids:  # the end token came first
            continue
        logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        probs = probabilities(logits, sampling)
        keys = [hash_seed(seed, row, position) for position in range(len(ids))]
        for position in (draw(probs, keys) != torch.tensor(ids)).nonzero().flatten().tolist():
            found += 1
            for shift in (-1e-3, 1e-3):
                moved = logits[position : position + 1].clone()
                moved[0, ids[position]] += shift
                if draw(probabilities(moved, sampling), keys[position : position + 1]).item() == ids[position]:
                    break
            else:
                raise AssertionError(f"row {row}, position {position}: not a near tie")
    return found


def compare_modes(n_rows, length, **shape):
    """Returns the number of tokens generated, and by mode the number that differ from full forwards."""
    generated, found = 0, defaultdict(int)
    settings = [SamplingConfig(), SamplingConfig(temperature=0.6, top_k=20, top_p=0.95), GREEDY]
    for number, family in enumerate(FAMILIES):
        sampling = settings[number % len(settings)]
        lm = byte_model(family, context=length + 24, **shape)
        texts = ["Listen to your heart"[: 1 + row % 20] for row in range(n_rows)]
        prompts = [lm.encode(text) for text in texts]
        options = {"max_new_tokens": length, "sampling": sampling, "seed": 7}
        modes = {
            "batch": lm.generate(prompts, **options),
            "single": [lm.generate([p], indices=[i], **options)[0] for i, p in enumerate(prompts[:3])],
            "speculative": lm.generate(prompts, speculative=True, **options),
        }
        for mode, rows in modes.items():
            ids = [row.tokens for row in rows]
            found[mode] += count_near_ties(lm.model, prompts[: len(rows)], ids, sampling, seed=7)
        if not any(found.values()):
            batch, single, speculative = ([row.tokens for row in rows] for rows in modes.values())
            assert batch == speculative and single == batch[:3]
        assert "".join(lm.stream(texts[0], **options)) == modes["single"][0].text
        generated += sum(len(row.tokens) for row in modes["batch"])
    return generated, dict(found)


def test_cached_batched_streamed_and_speculative_text_equals_that_of_full_forwards():
    generated, found = compare_modes(8, 40, n_layer=2)
    assert generated > 1000 and max(found.values()) <= 2, found


@pytest.mark.slow
def test_ten_thousand_tokens_are_the_same_in_every_mode():
    generated, found = compare_modes(28, 110)
    assert generated > 10_000 and max(found.values()) <= 10, found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_then_scoring_gives_equal_log_probabilities(family):
    model = make(family)
    prompts = [[1, 2, 3], [4] * 20, [9]]
    sampling = SamplingConfig(temperature=0.8, top_k=30)
    rows = new_tokens(model, prompts, max_new_tokens=20, seed=5, sampling=sampling)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([new.id for new in row])
        logits = model(torch.tensor([prompt + ids.tolist()]))[0, len(prompt) - 1 : -1]
        for name, probs in (
            ("log_probability", probabilities(logits, sampling)),
            ("model_log_probability", logits.softmax(-1)),
        ):
            reported = torch.tensor([getattr(new, name) for new in row])
            torch.testing.assert_close(reported, probs.gather(-1, ids[:, None])[:, 0].log(), atol=1e-4, rtol=0)


# Rows


def test_a_row_depends_only_on_its_own_prompt_seed_and_index():
    model = make("modern")
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9], [1, 2, 3]]
    together = new_ids(model, prompts, max_new_tokens=15, seed=3)
    assert new_ids(model, prompts[:1], max_new_tokens=15, seed=3) == together[:1]
    assert new_ids(model, prompts[1:], max_new_tokens=15, seed=3, indices=[1, 2]) == together[1:]
    assert new_ids(model, prompts[::-1], max_new_tokens=15, seed=[9, 3, 4], indices=[2, 1, 0])[1] == together[1]
    assert together[0] != together[2]  # one prompt and seed, two indices
    assert new_ids(model, prompts[:1], max_new_tokens=15, seed=4)[0] != together[0]
    assert new_ids(model, prompts[:1], max_new_tokens=5, seed=3)[0] == together[0][:5]


def test_every_row_has_its_own_length():
    model = make("modern")
    prompts = [[1], [2, 3], [4]]
    made = new_tokens(model, prompts, max_new_tokens=[3, 12, 7], seed=2)
    assert [len(row) for row in made] == [3, 12, 7]
    assert all(new.ended is None for row in made for new in row[:-1]) and {row[-1].ended for row in made} == {"length"}
    assert [new.id for new in made[2]] == new_ids(model, prompts, max_new_tokens=20, seed=2)[2][:7]


def test_rows_that_have_ended_do_not_change_the_others():
    model = make("llama")
    prompts = [[n + 1, n, n + 2][: 1 + n % 3] for n in range(9)]
    limits = [4, 30, 9, 4, 60, 4, 17, 4, 60]  # two of them outgrow the context
    sampling = SamplingConfig(repetition_penalty=1.2, frequency_penalty=0.5, bad_words=("ab", "c"), min_new_tokens=3)
    options = {"sampling": sampling, "vocabulary": ascii_vocabulary(0), "seed": 6}
    together = new_tokens(model, prompts, max_new_tokens=limits, **options)
    for i, (row, limit) in enumerate(zip(together, limits, strict=True)):
        [alone] = new_tokens(model, [prompts[i]], max_new_tokens=limit, indices=[i], **options)
        assert [new.id for new in row] == [new.id for new in alone]
        assert row[-1].ended == "end" or len(row) == limit


def test_a_row_stops_at_its_end_token_and_others_continue():
    model = make("modern")
    free = new_ids(model, [[1, 2, 3], [4, 5]], max_new_tokens=30, seed=1)
    end = free[0][4]
    assert end not in free[0][:4]
    made = new_tokens(model, [[1, 2, 3], [4, 5]], max_new_tokens=30, seed=1, vocabulary=ascii_vocabulary(end))
    assert [new.id for new in made[0]] == free[0][:5] and made[0][-1].ended == "end" and made[0][-1].text == ""
    expected = free[1][: free[1].index(end) + 1] if end in free[1] else free[1]
    assert [new.id for new in made[1]] == expected


def test_a_finished_row_may_outlive_the_cache_of_its_neighbours():
    model = make("modern")  # context 48
    prompts = [[1] * 47, [2]]
    free = new_ids(model, prompts, max_new_tokens=1, seed=1)
    made = new_ids(model, prompts, max_new_tokens=40, seed=1, vocabulary=ascii_vocabulary(free[0][0]))
    assert made[0] == free[0]
    assert made[1] == new_ids(model, [[7], [2]], max_new_tokens=40, seed=1, vocabulary=ascii_vocabulary(free[0][0]))[1]


def test_the_end_token_waits_for_min_new_tokens():
    model = make("modern")
    end = new_ids(model, [[1, 2, 3]], max_new_tokens=5, sampling=GREEDY)[0][3]
    for least in (0, 3, 4, 10):
        sampling = SamplingConfig(temperature=0, min_new_tokens=least)
        [row] = new_tokens(model, [[1, 2, 3]], max_new_tokens=30, sampling=sampling, vocabulary=ascii_vocabulary(end))
        ids = [new.id for new in row]
        assert end not in ids[:least] and (least > 3 or len(ids) == 4)
    assert len(ids) > 10


# The end of the context


@torch.no_grad()
@pytest.mark.parametrize("speculative", [False, True])
def test_text_may_grow_beyond_the_context(speculative):
    model = make("gpt2")  # learned positions: nothing exists beyond 48
    [made] = new_ids(model, [[1] * 40], max_new_tokens=60, sampling=GREEDY, speculative=speculative)
    assert len(made) == 60
    text = [1] * 40 + made
    window = text[:49][-25:]  # the first token beyond the context is chosen from the newest half
    assert made[9] == model(torch.tensor([window]))[0, -1].argmax().item()


def test_the_number_of_forgotten_tokens_is_reported():
    model = make("modern")  # context 48
    rows = new_tokens(model, [[1] * 40, [1] * 60, [1]], max_new_tokens=[20, 2, 9])
    assert [new.forgotten for new in rows[0]] == [0] * 9 + [24] * 11
    assert [new.forgotten for new in rows[1]] == [12, 12 + 24] and rows[2][-1].forgotten == 0


def test_a_prompt_longer_than_the_context_is_truncated_on_the_left():
    model = make("modern")
    long = [(7 * i) % 96 for i in range(100)]
    assert new_ids(model, [long], max_new_tokens=5) == new_ids(model, [long[-48:]], max_new_tokens=5)


def test_text_beyond_the_context_is_refused_on_request():
    model = make("modern")
    fitting = new_ids(model, [[1] * 40], max_new_tokens=9, on_overflow="error")  # the last token is not read
    assert len(fitting[0]) == 9 and fitting == new_ids(model, [[1] * 40], max_new_tokens=9)
    for length, limit in ((40, 10), (100, 1), (49, 1)):
        with pytest.raises(
            InputError, match=f"{length} tokens of prompt.*max_new_tokens={limit}.*context of 48.*on_overflow=slide"
        ):
            new_ids(model, [[1], [1] * length], max_new_tokens=limit, on_overflow="error")


# Penalties


def test_penalties_count_the_prompt_or_the_new_text():
    model = make("modern")
    prompt = list(range(0, 90, 2))
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e9)
    [made] = new_ids(model, [prompt], max_new_tokens=3, sampling=sampling)
    assert not set(made) & set(prompt)
    for penalty in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        [made] = new_ids(model, [[1, 2]], max_new_tokens=96, sampling=SamplingConfig(temperature=0, **penalty))
        assert len(set(made)) == 96  # every token once; also those of the prompt
    few = make("modern", vocab_size=10)
    plain, penalized = (
        new_ids(few, [[1]], max_new_tokens=5, sampling=SamplingConfig(temperature=0, repetition_penalty=penalty))[0]
        for penalty in (1, 1e9)
    )
    assert len(set(plain)) < 5 == len(set(penalized))


# Errors


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
        ([[1]], {"sampling": SamplingConfig(force_words=["a"])}, "no tokens spell it"),
    ],
)
def test_wrong_arguments_are_named(prompts, options, part):
    with pytest.raises(InputError, match=part):
        next(generate(make("modern"), prompts, **({"max_new_tokens": 5} | options)))


def test_autocast_is_off_between_two_steps():
    compute = Compute(torch.device("cpu"), torch.bfloat16, compile=False)
    for step in generate(make("modern"), [[1, 2, 3]], max_new_tokens=3, compute=compute):
        assert len(step) == 1 and not torch.is_autocast_enabled("cpu")
