"""Copies: the suffix search equals brute force, spans are maximal, human text is compared fairly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.evaluation.copies import compared, find_copies, held_out_windows, maximal_spans, statistics
from data.evaluation.suffix_array import Index, suffix_array
from data.preparation.shards import SplitWriter, open_split

SMALL = st.lists(st.integers(0, 2), max_size=40)


@settings(max_examples=150, deadline=None)
@given(SMALL, st.sampled_from(["u2", "u4", "i8"]))
def test_suffixes_are_in_lexicographic_order(ids, dtype):
    found = suffix_array(np.array(ids, dtype)).tolist()
    assert found == sorted(range(len(ids)), key=lambda start: ids[start:])


@pytest.mark.parametrize("largest", [1, 2, 300, 65535, 100_000])
def test_large_ids_and_long_repeats_are_sorted_too(largest):
    random = np.random.default_rng(largest)
    ids = random.choice([0, largest // 2, largest], 300).astype(np.uint32)
    ids = np.concatenate([ids, ids, np.full(90, largest, np.uint32), ids[:50]])
    if largest <= 65535:
        ids = ids.astype(np.uint16)
    rows = ids.tolist()
    assert suffix_array(ids).tolist() == sorted(range(len(rows)), key=lambda start: rows[start:])


def places_by_search(corpus, run):
    return [start for start in range(len(corpus) - len(run) + 1) if corpus[start : start + len(run)] == run]


@settings(max_examples=150, deadline=None)
@given(SMALL, st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_spans_are_the_maximal_runs_of_a_direct_search(corpus, text, min_tokens):
    index = Index(np.array(corpus, np.uint16))
    found = find_copies(index, np.array(text, np.uint16), min_tokens=min_tokens)

    def occurs(start, stop):
        return 0 <= start and stop <= len(text) and bool(places_by_search(corpus, text[start:stop]))

    wanted = {
        (start, stop - start)
        for start in range(len(text))
        for stop in range(start + min_tokens, len(text) + 1)
        if occurs(start, stop) and not occurs(start - 1, stop) and not occurs(start, stop + 1)
    }
    assert {(span.start, span.length) for span in found.spans} == wanted
    for span in found.spans:
        places = places_by_search(corpus, text[span.start : span.start + span.length])
        assert span.count == len(places) and span.positions == places[:3]
    inside = {place for start, length in wanted for place in range(start, start + length)}
    assert found.covered == len(inside) and found.rare <= found.covered
    longest = [
        stop - start for start in range(len(text)) for stop in range(start, len(text) + 1) if occurs(start, stop)
    ]
    assert found.longest == max(longest, default=0)


def test_a_copy_longer_than_the_first_look_is_found_whole():
    random = np.random.default_rng(0)
    corpus = random.integers(0, 50_000, 3000).astype(np.uint16)
    text = np.concatenate([[60_000], corpus[1000:1500], [60_001], corpus[:64], [60_002], corpus[-65:]]).astype(
        np.uint16
    )
    found = find_copies(Index(corpus), text, min_tokens=5)
    assert [(span.start, span.length, span.positions) for span in found.spans] == [
        (1, 500, [1000]), (567, 65, [2935]), (502, 64, [0]),
    ]  # fmt: skip
    assert found.covered == found.rare == 629 and found.longest == 500


def test_only_matches_that_reach_further_are_maximal():
    assert maximal_spans(np.array([3, 2, 1, 4, 3]), min_tokens=1) == [(0, 3), (3, 4)]
    assert maximal_spans(np.array([3, 2, 1, 4, 3]), min_tokens=4) == [(3, 4)]
    assert maximal_spans(np.array([0, 0]), min_tokens=1) == maximal_spans(np.array([], int), min_tokens=1) == []


@pytest.fixture
def split(tmp_path):
    """Three documents of 40, 3 and 100 tokens."""
    import json

    with SplitWriter(tmp_path, "val", sources=["a"], dtype="uint16", end_id=0) as writer:
        for number, size in enumerate((40, 3, 100)):
            ids = np.arange(1, size + 1, dtype=np.uint16) + 100 * number
            writer.add(np.append(ids, np.uint16(0)).tobytes(), [(size + 1, size, f"{number}.txt".encode())], source=0)
        entry = writer.close() | {"unknown_characters": {}}
    index = {"format": 2, "splits": {"val": entry}, "dtype": "uint16", "fingerprint": "f"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return open_split(tmp_path, "val")


def test_held_out_windows_lie_within_documents_and_are_spread(split):
    windows = held_out_windows(split, [20] * 10)
    assert [len(window) for window in windows] == [20] * 10 and all((window > 0).all() for window in windows)
    assert all((np.diff(window.astype(int)) == 1).all() for window in windows)
    assert {int(window[0]) // 100 for window in windows} == {0, 2}
    assert [len(window) for window in held_out_windows(split, [500, 500])] == [40, 100]
    index = Index(split.tokens[:])
    copied = find_copies(index, np.array([999, *range(101, 104), 998, *range(210, 230)]), split, min_tokens=3)
    assert [(span.length, span.sources) for span in copied.spans] == [(20, ["2.txt"]), (3, ["1.txt"])]


def test_statistics_and_the_difference_from_human_text():
    corpus = np.random.default_rng(1).integers(0, 30_000, 5000).astype(np.uint16)
    index, random = Index(corpus), np.random.default_rng(2)
    new = random.integers(30_001, 60_000, (12, 100)).astype(np.uint16)
    copying = new.copy()
    copying[:, :40] = corpus[:40]
    texts, human = ([find_copies(index, text) for text in side] for side in (copying, new))
    figures = statistics(texts)
    assert figures["covered"] == figures["rare"] == {"share": 0.4, "low": 0.4, "high": 0.4}
    assert figures["longest"] == figures["mean_longest"] == 40 and figures["texts"] == figures["spans"] == 12
    assert statistics(human)["covered"]["share"] == 0
    found = compared(texts, human)
    assert found["covered"] == {"difference": 0.4, "low": 0.4, "high": 0.4}
    same = compared(human, human)
    assert same["rare"]["low"] <= 0 <= same["rare"]["high"]
    assert statistics(texts[:1])["covered"]["low"] is None
