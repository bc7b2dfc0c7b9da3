"""The proof of an import or export lets rounding pass, and nothing else."""

from __future__ import annotations

import pytest
import torch

from model import InputError
from model.exchange.proof import EXACT, Tasks, compare_greedy, compare_logits, compare_top, prove

VOCAB, CONTEXT = 50, 16


class Program:
    """Logits that depend on the last token alone, and ids that are the characters' numbers."""

    def __init__(self, table: torch.Tensor, *, tolerance: float | None = EXACT, shift: int = 0) -> None:
        self.name, self.table, self.tolerance, self.shift = "toy", table, tolerance, shift

    def encode(self, text, *, special):
        return [ord(character) + self.shift for character in text]

    def logits(self, ids):
        return self.table[list(ids)]

    def greedy(self, ids, count):
        new = [ids[-1]]
        for _ in range(count):
            new.append(int(self.table[new[-1]].argmax()))
        return new[1:]


@pytest.fixture
def table() -> torch.Tensor:
    return 3 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))


def check(ours: Program, theirs: Program) -> list[str]:
    tasks = Tasks.of(plain=["ab", ""], special=["c"], prompt=[1, 2], vocab_size=VOCAB, context=CONTEXT)
    return prove(ours, [lambda: theirs], tasks, context=CONTEXT, say=lambda line: None)


def test_the_same_answers_up_to_rounding_pass(table):
    lines = check(Program(table), Program(table + 1e-4 * torch.randn_like(table)))
    assert len(lines) == 5 and "identical" in lines[-1] and "2 ids of 2 texts (2 characters), 0 differ" in lines[0]


def test_other_ids_and_other_logits_do_not_pass(table):
    with pytest.raises(InputError, match="toy differs in ids of ordinary text"):
        check(Program(table), Program(table, shift=1))
    for wrong in (table.flip(0), table + 0.01 * torch.randn_like(table), table * torch.nan, table[:, :-1]):
        with pytest.raises(InputError, match="toy differs in logits of random ids"):
            check(Program(table), Program(wrong))


def test_a_program_that_rounds_activations_must_predict_the_same(table):
    rounded = table + 0.1 * torch.randn_like(table)
    rounded[table < -5] += 3  # the improbable tokens are far off
    assert len(check(Program(table), Program(rounded, tolerance=None))) == 3
    for wrong in (table.flip(0), table * 1.5, table * torch.nan):
        with pytest.raises(InputError, match="KL divergence"):
            check(Program(table), Program(wrong, tolerance=None))


def test_greedy_texts_may_part_only_at_a_tie():
    logits = torch.zeros(5)
    logits[3] = 1.0
    tie = {"prompt": [0], "after": lambda ids: logits}
    assert compare_greedy([1, 2, 4], [1, 0, 3], **tie).passed
    assert not compare_greedy([1, 2, 4], [1, 3, 4], **tie).passed
    assert not compare_greedy([1, 2], [1, 2, 3], **tie).passed


def test_the_order_of_the_most_probable_tokens_must_be_the_same_but_for_ties(table):
    ours = table[0].sort(descending=True).values
    swapped = ours.clone()
    swapped[[0, 1]] = ours[[1, 0]]
    assert not compare_top(ours, swapped, EXACT).passed
    ours[1] = swapped[0] = ours[0] - 1e-4
    swapped[1] = ours[0]
    assert compare_top(ours, swapped, EXACT).passed


def test_logits_that_are_not_numbers_are_different(table):
    for tolerance in (EXACT, None):
        assert not compare_logits(table, table * torch.nan, tolerance).passed
