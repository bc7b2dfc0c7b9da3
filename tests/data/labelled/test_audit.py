"""The audit: counts are right, and sets that could not train a useful model are refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.curation.duplicates import shingle_hashes
from data.labelled.audit import NEAR, Audit, near_pairs
from data.labelled.examples import Example
from data.labelled.rows import Rows
from data.labelled.templates import CHAT_TEMPLATES, ChatTemplate
from data.tokenizers.build import TokenizerConfig, build

TOKENIZER = build(TokenizerConfig(kind="byte", special_tokens=["<|user|>"]), [])
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rows(*examples: Example, context: int = 200) -> Rows:
    return Rows(examples, TOKENIZER, context=context)


def labelled(text: str, label: str) -> Example:
    return Example(f"{text}\n\nLabel:", f" {label}", label=label)


TRAIN = [labelled(f"text number {i}", "yes" if i % 3 else "no") for i in range(9)]
OTHER = [Example("another", "answer")]
HELD = [labelled("another text", "yes"), labelled("a third one", "no")]


def audit(train=TRAIN, held=HELD, **changes) -> Audit:
    return Audit.of(rows(*train), rows(*held), **changes)


def test_a_sound_set_has_no_problem_and_its_counts():
    found = audit()
    assert found.problems == [] and len(found.notes) == 1 and "begin with the same token" in found.notes[0]  # a space
    assert found.labels == {"yes": (6, 1), "no": (3, 1)} and found.copied == found.same_prompt == 0
    tokens = sum(len(example.prompt + example.completion) + 1 for example in TRAIN)
    assert (found.train.examples, found.train.tokens, found.train.learned_tokens) == (9, tokens, 6 * 5 + 3 * 4)
    assert (found.train.truncated, found.train.dropped, found.train.empty_prompts) == (0, 0, 0)


def test_what_is_cut_dropped_empty_or_double_is_counted():
    examples = [
        Example("p" * 30, "a"), Example("p", "a" * 40), Example("", "a"), Example("q", "b"), Example("q", "b"),
        Example("q", "c"),
    ]  # fmt: skip
    counts = Audit.of(rows(*examples, context=20), rows(*HELD)).train
    assert (counts.examples, counts.truncated, counts.dropped, counts.empty_prompts) == (5, 1, 1, 1)
    assert (counts.duplicates, counts.contradictions) == (1, 1)


def test_near_duplicates_are_found_within_and_across_the_splits():
    text = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest of the north"
    other = text.replace("north", "south")
    assert near_pairs([text, "something else entirely that shares nothing", other, text]) == {(0, 2), (2, 3)}
    found = audit([*TRAIN, labelled(text, "no")], [*HELD, labelled(other, "yes")])
    assert found.near_copies == 1 and found.copied == 0
    copied = audit([*TRAIN, labelled(text, "no")], [*HELD, labelled(text, "no"), labelled(text, "yes")])
    assert (copied.copied, copied.same_prompt, copied.near_copies) == (1, 1, 0)
    no_prompt = [Example("", "one"), Example("", "two"), Example("q", "three")]
    copied = audit(no_prompt, [*no_prompt[:2], Example("q", "four")])
    assert (copied.copied, copied.same_prompt) == (2, 1)


def test_all_near_duplicates_are_found_by_few_comparisons(monkeypatch):
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 201)
    words = [random.choice(200, 40, p=frequency / frequency.sum()) for _ in range(150)]
    for _ in range(150):  # copies with some words changed
        copy = words[int(random.integers(150))].copy()
        copy[random.choice(40, int(random.integers(1, 6)), replace=False)] = random.integers(200)
        words.append(copy)
    texts = [" ".join(f"w{word}" for word in some) for some in words]
    sets = [set(shingle_hashes(text).tolist()) for text in texts]
    similar = {
        (a, b) for b in range(300) for a in range(b)
        if len(sets[a] & sets[b]) >= NEAR * len(sets[a] | sets[b]) and texts[a] != texts[b]
    }  # fmt: skip
    compared, intersect = [], np.intersect1d
    monkeypatch.setattr(np, "intersect1d", lambda *a, **k: compared.append(1) or intersect(*a, **k))
    assert near_pairs(texts) == similar and len(similar) > 20
    assert len(compared) < 20 * len(similar)


@pytest.mark.parametrize(
    "train, held, problem",
    [
        (TRAIN[:1], HELD, "there is only one training example"),
        (TRAIN, TRAIN[:2], "every held-out example is also a training example"),
        ([Example(f"same {i}", f"same {i}") for i in range(4)], HELD, "4 of 4 completions only repeat their prompt"),
        ([labelled(f"text {i}", "yes") for i in range(9)], HELD, "all training examples have the label 'yes'"),
        ([labelled(f"text {i}", f"l{i}") for i in range(9)], [labelled("x", "l1")], "9 labels for 9 training examples"),
        (TRAIN, [labelled("x", "maybe")], "no label of the held-out examples occurs in training"),
    ],
)
def test_a_set_that_teaches_nothing_is_refused(train, held, problem):
    assert any(problem in found for found in audit(train, held).problems)


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused():
    tokenizer = build(TokenizerConfig(kind="char"), ["text: a"])
    some = Rows([Example("text:", f" {'ab c'[i % 2]}", label="abc"[i % 2]) for i in range(9)], tokenizer, context=99)
    [problem] = Audit.of(some, some).problems
    assert problem == "every held-out example is also a training example; hold out different ones"
    others = Rows([Example("text:", f" {label}", label=label) for label in "bcbcbc"], tokenizer, context=99)
    assert any("two labels have the same tokens" in problem for problem in Audit.of(others, some).problems)


@pytest.mark.slow
def test_ten_thousand_labels_are_refused_quickly():
    examples = [labelled(f"w{i} x{i} y{i} z{i}", f"label {i}") for i in range(10_000)]
    [problem] = audit(examples, [labelled("x", "label 1")]).problems
    assert "10,000 labels for 10,000 training examples" in problem


def test_what_deserves_a_look_is_noted():
    notes = " ".join(
        audit(
            [*TRAIN, labelled("a <|user|> typed", "Yes"), labelled("b", "yes "), Example("Answer: ", "yes")],
            [*HELD, labelled("c", "unseen")],
        ).notes
    )
    for part in (
        "prompts that end in a space: 1;", "examples that contain the name of a special token: 1;",
        "labels that occur only in the held-out examples: 1, such as 'unseen'",
        "these labels differ only in case, spaces or composed accents: 'yes', ", "begin with the same token",
    ):  # fmt: skip
        assert part in notes
    accents = audit([*TRAIN, labelled("a", "caf\u00e9"), labelled("b", "cafe\u0301")]).notes
    assert "composed accents: 'caf\u00e9', 'cafe\u0301'" in " ".join(accents)


def test_examples_that_no_epoch_draws_are_noted():
    weighted = [replace(e, weight=1.0 if number < 5 else 0.1) for number, e in enumerate(TRAIN)]
    [note, _] = audit(weighted).notes
    assert note.startswith("training examples that are never drawn") and note.endswith(": 3")
    assert len(audit([replace(e, weight=w) for e, w in zip(TRAIN, [1.0] * 8 + [0.0], strict=True)]).notes) == 1


def chats(template: ChatTemplate) -> list[Example]:
    return [Example(f"u{i}", "Hello", chat=template.segments(TURNS)) for i in range(3)]


def test_a_chat_template_that_the_tokenizer_cannot_end_is_refused():
    chatml, no_end = CHAT_TEMPLATES["chatml"], ChatTemplate({"user": ("<|user|>", ""), "assistant": ("A:", "\n")})
    [problem] = audit(chats(chatml), OTHER, chat=chatml).problems
    assert "<|im_start|>, <|im_end|>, which the tokenizer does not have" in problem
    [problem] = audit(chats(no_end), OTHER, chat=no_end).problems
    assert "an answer would not end" in problem
    plain = CHAT_TEMPLATES["plain"]
    assert audit(chats(plain), OTHER, chat=plain).problems == []
