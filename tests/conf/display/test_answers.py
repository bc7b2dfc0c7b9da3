"""The note on labels that a model would rather not write."""

from __future__ import annotations

import pytest

from conf.display.answers import outside_note

LABELS = ["good", "bad"]


@pytest.mark.parametrize(
    "outside, noted",
    [
        ([0.95], True),
        ([0.9], False),
        ([0.99, 0.1, 0.1], False),  # one text of three
        ([0.99, 0.1], False),
        ([0.1, 0.99, 0.99], True),
        ([], False),  # nothing was left to answer
    ],
)
def test_it_appears_if_most_texts_have_most_of_the_probability_outside_the_labels(outside, noted):
    note = outside_note(outside, LABELS)
    assert (note is not None) == noted
    assert note is None or ("for most of the" in note) == (len(outside) > 1)
    assert outside_note(outside, []) is None
