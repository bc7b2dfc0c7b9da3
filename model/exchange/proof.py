"""The proof of an import or export: two programs get the same tasks, and their answers must be equal.

One program answers everything before the next one is loaded, so that only one model is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor

from .. import InputError
from ..inference import quantize

EXACT = 2e-3  # of float32 logits: the same sums in another order
DIVERGENCE = 0.05  # nats per token, where a program rounds activations; rows in the wrong order give SmolLM2 0.9
N_SEQUENCES, SEQUENCE_LENGTH = 4, 64
N_GREEDY = 200
TOP = 10


class Program(Protocol):
    """What can be asked of a program that has read a model and its tokenizer."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float | None:
        """The largest difference of logits. None: it rounds activations, so whole predictions are compared."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The ids of a text. special: the names of special tokens in it are these tokens, otherwise ordinary text."""

    def logits(self, ids: Sequence[int]) -> Tensor:
        """ids (T) -> float32 logits (T, V)."""

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` most probable tokens after ids, one after another; end tokens do not end it."""


@dataclass(frozen=True)
class Tasks:
    """What each program is asked."""

    plain: list[str]  # texts whose special tokens are ordinary text
    special: list[str]  # texts whose special tokens are tokens
    prompt: list[int]  # continued greedily
    sequences: list[list[int]]  # random ids

    @staticmethod
    def of(*, plain: list[str], special: list[str], prompt: list[int], vocab_size: int, context: int) -> Tasks:
        """Tasks for a model with these sizes. The random ids are always the same."""
        generator = torch.Generator().manual_seed(1)
        shape = (N_SEQUENCES, min(SEQUENCE_LENGTH, context))
        sequences = torch.randint(vocab_size, shape, generator=generator).tolist()
        return Tasks(plain, special, prompt[: context // 2], sequences)

    def n_greedy(self, context: int) -> int:
        return min(N_GREEDY, context - len(self.prompt))


@dataclass(frozen=True)
class Answers:
    """What a program answered."""

    program: str
    plain: list[list[int]]
    special: list[list[int]]
    logits: Tensor  # (N, T, V), on the random ids
    prompt_logits: Tensor  # (V,), after the prompt
    greedy: list[int]


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, its figure, and whether the programs agree."""

    name: str
    figure: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.figure}" + ("" if self.passed else "  DIFFERENT")


def logits_of(program: Program, tasks: Tasks) -> Tensor:
    """Returns a program's logits of the random ids, (N, T, V)."""
    return torch.stack([program.logits(ids) for ids in tasks.sequences])


@torch.no_grad()
def ask(program: Program, tasks: Tasks, *, context: int) -> Answers:
    """Returns a program's answers to all tasks."""
    return Answers(
        program.name,
        plain=[program.encode(text, special=False) for text in tasks.plain],
        special=[program.encode(text, special=True) for text in tasks.special],
        logits=logits_of(program, tasks),
        prompt_logits=program.logits(tasks.prompt)[-1],
        greedy=program.greedy(tasks.prompt, tasks.n_greedy(context)),
    )


def prove(
    ours: Program,
    others: Iterable[Callable[[], Program]],
    tasks: Tasks,
    *,
    context: int,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Asks all programs, says how their answers compare, and returns what was said.

    others: each opens a program, when it is its turn. Texts may part if its tolerance is above EXACT. Raises InputError
    at the first difference.
    """
    if not (waiting := list(others)):
        return []
    answers, lines = ask(ours, tasks, context=context), list[str]()
    for open_program in waiting:
        program = open_program()
        theirs, tolerance = ask(program, tasks, context=context), program.tolerance
        checks = [
            compare_ids("ids of ordinary text", tasks.plain, answers.plain, theirs.plain),
            compare_ids("ids of text with special tokens", tasks.special, answers.special, theirs.special),
            compare_logits(answers.logits, theirs.logits, tolerance),
        ]
        if tolerance is not None:
            checks.append(compare_top(answers.prompt_logits, theirs.prompt_logits, tolerance))
        if tolerance is not None and tolerance <= EXACT:
            after = lambda ids: ours.logits(ids)[-1]  # noqa: E731
            checks.append(compare_greedy(answers.greedy, theirs.greedy, prompt=tasks.prompt, after=after))
        for check in checks:
            lines.append(f"{program.name}: {check}")
            say(f"  {lines[-1]}")
            if not check.passed:
                raise InputError(f"not published: {program.name} differs in {check.name}: {check.figure}")
    return lines


def compare_ids(name: str, texts: Sequence[str], ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> Check:
    wrong = [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    figure = f"{sum(map(len, ours)):,} ids of {len(texts):,} texts ({sum(map(len, texts)):,} characters), "
    return Check(name, figure + (f"{len(wrong)} differ, such as {wrong[0][:40]!r}" if wrong else "0 differ"), not wrong)


def compare_logits(ours: Tensor, theirs: Tensor, tolerance: float | None) -> Check:
    if ours.shape != theirs.shape:
        return Check("logits of random ids", f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}", False)
    if tolerance is None:
        distance = quantize.compare_logits(ours, theirs).divergence
        what, limit = "mean KL divergence in nats", DIVERGENCE
    else:
        distance = (ours - theirs).abs().max().item()
        what, limit = "largest difference", tolerance
    figure = f"{what} {distance:.1e} over {ours.shape[0] * ours.shape[1]} positions (limit {limit:.0e})"
    return Check("logits of random ids", figure, distance <= limit)


def compare_greedy(
    ours: list[int], theirs: list[int], *, prompt: list[int], after: Callable[[list[int]], Tensor]
) -> Check:
    """Two texts may part where the two most probable tokens are tied within the tolerance of the logits."""
    equal = next((t for t, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b), len(ours))
    if equal == len(ours) == len(theirs):
        return Check("greedy text", f"{equal} tokens, identical", True)
    if equal < min(len(ours), len(theirs)):
        logits = after([*prompt, *ours[:equal]])
        gap = abs(logits[ours[equal]] - logits[theirs[equal]]).item()
        if gap <= EXACT:
            return Check("greedy text", f"{equal} tokens identical, then a tie of logits ({gap:.1e} apart)", True)
    return Check("greedy text", f"only {equal} of {len(ours)} tokens identical", False)


def compare_top(ours: Tensor, theirs: Tensor, tolerance: float) -> Check:
    """The probabilities of the most probable next tokens after the prompt, and their order where they are not tied."""
    p, q = ours.softmax(-1), theirs.softmax(-1)
    top = p.topk(min(TOP, len(p))).indices
    difference = (p[top] - q[top]).abs().max().item()
    expected = q.topk(len(top)).values
    same = bool(((q[top] - expected).abs() <= 2 * tolerance * expected).all())  # the order, but for ties
    figure = f"probabilities differ by at most {difference:.1e}, {'the same order' if same else 'another order'}"
    return Check(f"the {len(top)} most probable next tokens", figure, same)
