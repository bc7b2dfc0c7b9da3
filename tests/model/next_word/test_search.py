"""Search: true probabilities lie within their bounds at every step, and certificates are right."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.inference.vocabulary import Vocabulary
from model.next_word import search as module
from model.next_word.distribution import disputes, expansions, outcomes, pick_disputed, ranking
from model.next_word.search import OutcomeId, Search
from model.next_word.word_table import Tables
from model.next_word.words import State
from tests.model.next_word.oracle import decided_outcome

POOL = [
    *(b"a", b"b", b" a", b" ab", b"ab", b"ba", b"'", b"'b", b" '", b"-", b",", b" ", b"  ", b"\n", b"a b", b"b,"),
    b"a-b",
    *(b"\xc3", b"\xa9", b"\xc3\xa9", b"a\xc3", b"\xa9b", b"\xff", b"\xe2\x80", b"\x99", b"\x94 a", "北".encode(), b"1"),
    *(b"\x8c", b"\xc2", b"\xad", b".", b"_", b"1."),
    *(text.encode() for text in "· カ א 😀 🇩 \u200c \u200d \u00ad a\u200cb".split(" ")),
]  # fmt: skip
PROMPTS = ["", "a", "ab", "b a", "a'", "ab-", "a,", "é", "b\n", "1ab", "a é", "北", "ab ", "a' "]
PROMPTS += ["1", "1.", "a·", "a_", "_", "א", "א'", "カ", "😀\u200d", "🇩", "a\u200c", "a'\u200c", ",\u200c"]
DEEPEST = 3  # after this many tokens only the end token is possible
SPECIAL = {"<|user|>": "\uf000", "<|end|>": "\uf001"}  # characters that stand for special tokens


class Toy:
    """A Predictor whose distributions are random functions of the path."""

    depth = DEEPEST + 1

    def __init__(self, vocabulary: Vocabulary, seed: int, *, peaked: float = 2.0) -> None:
        self.vocabulary, self.seed, self.peaked = vocabulary, seed, peaked
        self.paths: list[tuple[int, ...]] = [()]

    def logits(self, path: tuple[int, ...]) -> Tensor:
        if len(path) >= DEEPEST:
            only_end = torch.full((len(self.vocabulary.tokens),), -torch.inf, dtype=torch.float64)
            only_end[self.vocabulary.end_id] = 0.0
            return only_end
        generator = random.Random(f"{self.seed} {path}")
        return torch.tensor([generator.gauss(0, self.peaked) for _ in self.vocabulary.tokens], dtype=torch.float64)

    def root(self) -> Tensor:
        return self.logits(())

    def expand(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        paths = [(*self.paths[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        self.paths += paths
        return torch.stack([self.logits(path) for path in paths])


def characters(path: Sequence[int], vocabulary: Vocabulary) -> str:
    """Returns a path's text without an unfinished last character. U+E0xx stands for an invalid byte xx."""
    found, waiting = "", b""
    for token in path:
        if token in vocabulary.special:
            found += "".join(chr(0xE000 + byte) for byte in waiting) + SPECIAL[vocabulary.special[token]]
            waiting = b""
            continue
        for byte in vocabulary.tokens[token]:
            waiting += bytes([byte])
            while waiting:
                try:
                    found += waiting.decode()
                    waiting = b""
                except UnicodeDecodeError as error:
                    if error.reason == "unexpected end of data":
                        break
                    found += chr(0xE000 + waiting[0])
                    waiting = waiting[1:]
    return found


def enumerate_all(toy: Toy, prompt: str, healed: bytes) -> tuple[dict[str, float], dict[str, set]]:
    """Walks every path; returns the mass of each outcome, and its tokenizations."""
    vocabulary = toy.vocabulary
    mass: defaultdict[str, float] = defaultdict(float)
    cuts: defaultdict[str, set] = defaultdict(set)
    stack: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while stack:
        path, probability = stack.pop()
        for token, share in enumerate(torch.softmax(toy.logits(path), -1).tolist()):
            longer = (*path, token)
            data = b"".join(vocabulary.tokens[i] for i in longer)
            n = min(len(data), len(healed))
            if data[:n] != healed[:n] or share == 0 or (token in vocabulary.special and n < len(healed)):
                continue
            if n < len(healed):
                stack.append((longer, probability * share))
                continue
            offset, after = 0, list(longer)  # the tokens after the healed bytes; one token may span their end
            while offset < len(healed):
                offset += len(vocabulary.tokens[after.pop(0)])
            over = b"".join(vocabulary.tokens[i] for i in longer[: len(longer) - len(after)])[len(healed) :]
            extended = Vocabulary((*vocabulary.tokens, over), vocabulary.special, vocabulary.end_id)
            text = characters([len(vocabulary.tokens), *after], extended)
            outcome = decided_outcome(prompt, text)
            if outcome is None:
                stack.append((longer, probability * share))
                continue
            mass[outcome] += probability * share
            cuts[outcome].add((path, text[0] == " "))
    return dict(mass), cuts


def name_of(outcome: OutcomeId) -> str:
    kind, text = outcome
    if isinstance(text, str):
        return SPECIAL[text]
    return chr(0xE000 + text[0]) if kind == "byte" else text.decode()


def toy_search(seed: int) -> tuple[Toy, Search, str, bytes, State]:
    generator = random.Random(seed)
    tokens = [*generator.sample(POOL, generator.randint(4, 9)), b"", b""]
    vocabulary = Vocabulary(tuple(tokens), {len(tokens) - 2: "<|user|>", len(tokens) - 1: "<|end|>"}, len(tokens) - 1)
    prompt = generator.choice(PROMPTS).rstrip(" ")
    tables = Tables(vocabulary)
    healed = prompt[-generator.randint(1, 3) :].encode() if prompt else b""
    healed = healed if any(healed.startswith(token[: len(healed)]) for token in tokens if token) else b""
    start = tables.rule.start(prompt, spaced=False)
    toy = Toy(vocabulary, seed)
    return toy, Search(toy, tables, start=start, healed=healed), prompt, healed, start


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(100, 1000, 100))]
)
def test_every_true_probability_lies_within_its_bounds_at_every_step(first):
    certified = 0
    for seed in range(first, first + 100):
        toy, search, prompt, healed, _ = toy_search(seed)
        true, cuts = enumerate_all(toy, prompt, healed)
        new = {outcome: mass for outcome, mass in true.items() if outcome != "continues"}
        total = sum(new.values())
        if total == 0:
            assert search.total <= 1e-12 * search.continued_mass or search.open_mass > 0
            continue
        generator = random.Random(seed)
        disputed_first = seed % 2  # half of the models are searched like expansions()
        while True:
            assert (
                search.closed_mass + search.open_mass + search.continued_mass + search.excluded_mass == pytest.approx(1)
            )
            shown = outcomes(search, 10**6)
            seen = {name_of(outcome) for outcome in search.closed}
            for outcome, row in zip(ranking(search), shown, strict=True):
                probability = new[name_of(outcome)] / total
                assert row.lower - 1e-9 <= probability <= row.upper + 1e-9, (seed, outcome)
            most = search.max_unseen()[0] / search.certain_total
            assert all(mass / total <= most + 1e-9 for outcome, mass in new.items() if outcome not in seen), seed
            top = generator.randint(1, 5)
            disputed = disputes(search, top)
            if not disputed:
                certified += 1
                listed = [new[name_of(outcome)] / total for outcome in ranking(search)[:top]]
                best = sorted((mass / total for mass in new.values()), reverse=True)[:top]
                assert listed == pytest.approx(best[: len(listed)], abs=2e-9)
                assert all(mass <= 2e-9 for mass in best[len(listed) :])
            children = pick_disputed(search, disputed, generator.randint(0, 2)) if disputed_first else []
            children += search.most_probable(generator.randint(1, 3), exclude=set(children))
            if not children:
                break
            search.expand(children)
        assert search.open_mass < 1e-12
        found = {name_of(outcome): closed for outcome, closed in search.closed.items()}
        assert {outcome: closed.mass for outcome, closed in found.items()} == pytest.approx(new, abs=1e-12)
        assert search.continued_mass == pytest.approx(true.get("continues", 0.0), abs=1e-12)
        assert {outcome: closed.tokenizations for outcome, closed in found.items()} == {o: len(cuts[o]) for o in new}, (
            seed
        )
    assert certified > 50


def test_a_search_finds_the_best_outcomes_whatever_its_batches():
    for seed in range(40):
        toy, search, prompt, healed, _ = toy_search(seed)
        true, _ = enumerate_all(toy, prompt, healed)
        best = sorted((mass for outcome, mass in true.items() if outcome != "continues"), reverse=True)[:3]
        for batch in (1, 2, 7):
            _, search, *_ = toy_search(seed)
            if search.total == 0:
                continue
            *_, (stopped, _) = expansions(search, top=3, max_expansions=10**6, batch=batch)
            assert stopped == "certified" or search.open_mass < 1e-12
            listed = [search.closed[outcome].mass for outcome in ranking(search)[:3]]
            true_listed = [true[name_of(outcome)] for outcome in ranking(search)[:3]]
            assert true_listed == pytest.approx(best, abs=1e-8)
            assert all(low <= high + 1e-9 for low, high in zip(listed, true_listed, strict=True))


class Fixed(Toy):
    """A Predictor with given probabilities: path -> {token: probability}."""

    def __init__(self, vocabulary: Vocabulary, probabilities: dict[tuple[int, ...], dict[int, float]]) -> None:
        super().__init__(vocabulary, seed=0)
        self.probabilities = probabilities

    def logits(self, path: tuple[int, ...]) -> Tensor:
        row = self.probabilities[path]
        return torch.tensor(
            [row.get(token, 0.0) for token in range(len(self.vocabulary.tokens))], dtype=torch.float64
        ).log()


def test_the_worked_example_of_the_readme():
    tokens = (b" York", b" Norfolk", b" Nor", b"folk", b".", b"")
    vocabulary = Vocabulary(tokens, {5: "<|end|>"}, 5)
    after = {(): {0: 0.4, 1: 0.35, 2: 0.25}, (0,): {4: 1.0}, (1,): {4: 1.0}, (2,): {3: 0.8, 4: 0.2}, (2, 3): {4: 1.0}}
    toy = Fixed(vocabulary, after)
    tables = Tables(vocabulary)
    search = Search(toy, tables, start=tables.rule.start("The Duke of", spaced=False))
    lines = []
    while True:
        path = " ".join(f'"{tokens[token].decode()}"' for token in toy.paths[-1]) or "(the prompt)"
        line = f"{path:<18}{search.closed_mass:6.2f}{abs(search.open_mass):6.2f}  "
        for word in (b"York", b"Norfolk"):
            lower = search.closed["word", word].mass if ("word", word) in search.closed else 0.0
            line += f"{lower:.2f} to {lower + search.open_mass_of(word):.2f}    "
        lines.append(line.rstrip())
        if not (children := search.most_probable(1, exclude=set())):
            break
        assert disputes(search, top=2), "the order is certain only at the end"
        search.expand(children)
    assert not disputes(search, top=2) and [name_of(outcome) for outcome in ranking(search)] == [
        "Norfolk",
        "York",
        "Nor",
    ]
    assert search.closed["word", b"Norfolk"].tokenizations == 2
    shown = (Path(module.__file__).parent / "README.md").read_text(encoding="utf-8").splitlines()
    start = shown.index(lines[0])
    assert shown[start : start + len(lines)] == lines


def test_the_most_probable_token_need_not_begin_the_most_probable_word():
    """`un` is the most probable token, but no word that begins with it is as probable as `heart`."""
    tokens = (b" un", b" heart", b" gut", b"kind", b"fair", b"even", b"s", b".", b"")
    vocabulary = Vocabulary(tokens, {8: "<|end|>"}, 8)
    after: defaultdict[tuple[int, ...], dict[int, float]] = defaultdict(lambda: {7: 1.0})
    after |= {(): {0: 0.5, 1: 0.3, 2: 0.2}, (0,): {3: 0.4, 4: 0.35, 5: 0.25}}
    search = Search(Fixed(vocabulary, after), Tables(vocabulary), start=State("before_word"))
    assert list(expansions(search, top=4, max_expansions=100))[-1][0] == "certified"
    shown = [(row.word, pytest.approx(row.lower)) for row in outcomes(search, 4)]
    assert shown[0] == ("heart", 0.3) and shown[3] == ("unfair", 0.175)
    assert sorted(shown[1:3]) == [("gut", 0.2), ("unkind", 0.2)]  # a tie
