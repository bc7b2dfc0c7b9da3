"""Duplicates: exact and near copies are found in every script and order; the copy in training is the one removed."""

from __future__ import annotations

import json
import random
import sys
from hashlib import sha256

import numpy as np
import pytest

from data import InputError
from data.curation.curate import CurateConfig
from data.curation.duplicates import SIGNATURE, duplicates, near_pairs, shingle_hashes, signature
from tests.programs import ROOT, finish, start

NEAR = CurateConfig(near_duplicates=True)
WORDS = [f"{first}{second}" for first in "ka lo mi ru ten vor zil".split() for second in "bar dus fen gol hip".split()]


def text_of(rng: random.Random, count: int = 120) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def with_changes(text: str, rng: random.Random, every: int = 20) -> str:
    words = text.split(" ")
    for place in range(rng.randrange(every), len(words), every):
        words[place] = "changed"
    return " ".join(words)


def found(texts: list[str], val: set[int] = frozenset(), config: CurateConfig = NEAR):
    digests = np.frombuffer(b"".join(sha256(text.encode()).digest() for text in texts), np.uint8).reshape(-1, 32)
    signatures = None
    if config.near_duplicates:
        rows = b"".join(signature(text, config) for text in texts)
        signatures = np.frombuffer(rows, np.uint8).reshape(-1, SIGNATURE)
    return duplicates(digests, signatures, np.array([i in val for i in range(len(texts))], bool), config)


def test_copies_are_found_and_the_first_stays():
    rng = random.Random(1)
    texts = [text_of(rng) for _ in range(60)]
    texts += [texts[3], with_changes(texts[4], rng), texts[3]]
    assert {i: (c.rule, c.original) for i, c in found(texts).items()} == {
        60: ("duplicate", 3), 61: ("near duplicate", 4), 62: ("duplicate", 3)
    }  # fmt: skip
    assert {i: c.original for i, c in found(texts, config=CurateConfig()).items()} == {60: 3, 62: 3}
    assert found([]) == {} and found(["alone " * 30]) == {}


def test_the_training_document_is_removed_whatever_the_order():
    rng = random.Random(2)
    texts = [text_of(rng) for _ in range(20)]
    texts += [texts[0], with_changes(texts[1], rng), texts[2], texts[2]]
    copies = found(texts, val={20, 21, 2, 3})
    assert {i: (c.rule, c.original) for i, c in copies.items()} == {
        0: ("in validation", 20), 1: ("near copy in validation", 21), 22: ("in validation", 2), 23: ("in validation", 2)
    }  # fmt: skip
    assert all(copy.removed for copy in copies.values())


def test_copies_are_counted_if_their_rule_is_off():
    rng = random.Random(3)
    text = text_of(rng)
    copies = found([text, text, text], val={1}, config=CurateConfig(exact_duplicates=False, overlap=False))
    assert {i: (c.rule, c.removed) for i, c in copies.items()} == {
        0: ("in validation", False),
        2: ("in validation", False),
    }


def test_a_near_copy_of_validation_is_removed_also_if_it_occurs_twice():
    rng = random.Random(1)
    held = text_of(rng, 300)
    near = with_changes(held, rng, 25)
    copies = found([held, near, near], val={0}, config=CurateConfig(near_duplicates=True, exact_duplicates=False))
    assert {i: c.removed for i, c in copies.items()} == {1: True, 2: True}
    copies = found([held] * 3, val={0}, config=CurateConfig(overlap=False))
    assert {i: c.removed for i, c in copies.items()} == {1: False, 2: True}


def test_a_document_similar_only_to_a_removed_one_stays():
    rng = random.Random(4)
    first = text_of(rng, 600)
    second = with_changes(first, random.Random(0), every=18)
    third = " ".join(w if w == "changed" or i % 18 != 9 else "other" for i, w in enumerate(second.split(" ")))
    one, two, three = (set(shingle_hashes(text).tolist()) for text in (first, second, third))
    assert len(one & two) / len(one | two) > 0.7 < len(two & three) / len(two | three)
    assert len(one & three) / len(one | three) < 0.58
    assert set(found([first, second, third])) == {1}


@pytest.mark.parametrize(
    "letters",
    [
        "患者接受每日毫克的治疗持续周不良反应很少见主要为头痛和恶心",
        "กขคงจฉชซฌญฎฏฐฑฒณดตถทธ",
        "あいうえおかきくけこさしす",
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(letters):
    rng = random.Random(5)
    texts = ["".join(rng.choice(letters) for _ in range(400)) for _ in range(10)]
    near = "".join("々" if i % 20 == 7 else c for i, c in enumerate(texts[0]))
    assert set(found([*texts, near])) == {10}


def test_shingles_ignore_case_and_punctuation():
    text = "Take two tablets a day, before meals; ask your doctor about the dose (see page 4)."
    assert (shingle_hashes(text) == shingle_hashes(text.upper().replace(",", " --"))).all()
    assert shingle_hashes("one two three four").size == 2 and shingle_hashes("one, two").size == 0
    assert (shingle_hashes("5mg患者ab") == shingle_hashes("5mg 患 者 ab")).all()
    assert shingle_hashes("").size == shingle_hashes("...").size == 0
    assert shingle_hashes("a b c d")[1] == shingle_hashes("x. b c d!")[1] != shingle_hashes("x. c b d!")[1]
    words = [word for first in WORDS for second in WORDS for word in (first, second)]
    runs = set(zip(words, words[1:], words[2:], strict=False))
    assert np.unique(shingle_hashes(" ".join(words))).size == len(runs)
    assert (
        np.unique(shingle_hashes("aaaa " * 10)).size == 1 != np.unique(shingle_hashes("aaaaa aaaa aaa aa aaa a")).size
    )


def test_short_documents_are_only_compared_exactly():
    assert signature("Yes, please do.", NEAR) == bytes(SIGNATURE)
    assert found(["Yes, please do.", "yes please do"]) == {}
    assert signature("anything", CurateConfig()) is None


def test_the_comparisons_per_document_are_bounded_in_a_large_band(monkeypatch):
    rows = np.random.default_rng(0).integers(1, 256, (1000, SIGNATURE), dtype=np.uint8)
    rows[:, :5] = 7
    assert list(near_pairs(rows, np.arange(1000), 0.65)) == []
    rows[:] = rows[0]
    pairs = list(near_pairs(rows, np.arange(1000), 0.65))
    assert {later for _, later in pairs} == set(range(1, 1000)) and len(pairs) <= 4 * 1000


def test_without_the_package_an_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(InputError, match=r"curate\.near_duplicates=true.*\.\[curate\]"):
        signature("a text", NEAR)


@pytest.mark.slow
def test_planted_copies_among_twenty_thousand_documents_are_found():
    ended = finish(start("-m", "scripts.bench", "curate", cwd=ROOT))
    assert ended.status == 0, ended.err
    figures = json.loads(ended.out.splitlines()[-1])
    assert figures["documents"] == 20_000 and figures["exact copies found"] == 1
    assert figures["near copies found"] >= 0.95 and figures["share of these removed from training"] >= 0.95
    assert figures["false positives, share of all other documents"] <= 0.001
