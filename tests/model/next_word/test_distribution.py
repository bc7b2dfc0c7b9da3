"""The distribution of the next word: true probabilities lie within their bounds, certificates are right."""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model import InputError
from model.inference.sampling import SamplingConfig
from model.inference.vocabulary import Vocabulary
from model.next_word.distribution import aim, disputes, next_word_distribution, outcomes, question, ranking, run
from model.next_word.search import Search
from model.next_word.tree import TreePredictor
from model.next_word.word_table import Tables
from model.next_word.words import State, WordRule
from tests.families import FAMILIES, make

POOL = [
    *(b"a", b"b", b" a", b" ab", b"ab", b"ba", b"'", b"'b", b" '", b"-", b",", b" ", b"  ", b"\n", b"a b", b"b,"),
    b"a-b",
    *(b"\xc3", b"\xa9", b"\xc3\xa9", b"a\xc3", b"\xa9b", b"\xff", b"\xe2\x80", b"\x99", b"\x94 a", "北".encode(), b"1"),
]  # fmt: skip
PROMPTS = ["", "a", "ab", "b a", "a'", "ab-", "a,", "é", "b\n", "1ab", "a é", "北", "ab ", "a' "]
DEEPEST = 3  # after so many tokens only the end token is left
INNER = set("'-’")


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


def symbols(path: Sequence[int], vocabulary: Vocabulary) -> tuple[list[str], bool]:
    """Characters, <bytes> and <special tokens> of a path, and whether a character at its end is unfinished."""
    found: list[str] = []
    waiting = b""
    for token in path:
        if token in vocabulary.special:
            found += [f"<{byte:02x}>" for byte in waiting] + [vocabulary.special[token]]
            waiting = b""
            continue
        for byte in vocabulary.tokens[token]:
            waiting += bytes([byte])
            while waiting:
                try:
                    found.append(waiting.decode())
                    waiting = b""
                except UnicodeDecodeError as error:
                    if error.reason == "unexpected end of data":
                        break
                    found.append(f"<{waiting[0]:02x}>")
                    waiting = waiting[1:]
    return found, bool(waiting)


def letter(symbol: str) -> bool:
    return len(symbol) == 1 and unicodedata.category(symbol)[0] in "LMN" and symbol != "北"


def oracle_outcome(text: list[str], prompt: str) -> str | None:
    """The outcome that symbols behind a prompt begin with, "continues", or None where more must be known."""
    edge = letter(prompt[-1:]) or (prompt[-1:] in INNER and letter(prompt[-2:-1]))
    if edge:
        if not text:
            return None
        if letter(text[0]):
            return "continues"
        if text[0] in INNER and letter(prompt[-1:]):
            return None if len(text) < 2 else "continues" if letter(text[1]) else text[0]
    if text[:1] == [" "]:
        text = text[1:]
    if not text or not letter(text[0]):
        return text[0] if text else None
    for place in range(1, len(text)):
        if letter(text[place]):
            continue
        if text[place] in INNER and place + 1 == len(text):
            return None
        if text[place] not in INNER or not letter(text[place + 1]):
            return "".join(text[:place])
    return None


def enumerate_all(toy: Toy, prompt: str, repeat: bytes) -> tuple[dict[str, float], dict[str, set]]:
    """Walks every path: the mass of each outcome, and its tokenisations."""
    vocabulary = toy.vocabulary
    mass: defaultdict[str, float] = defaultdict(float)
    cuts: defaultdict[str, set] = defaultdict(set)
    stack: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while stack:
        path, probability = stack.pop()
        for token, share in enumerate(torch.softmax(toy.logits(path), -1).tolist()):
            longer = (*path, token)
            data = b"".join(vocabulary.tokens[i] for i in longer)
            n = min(len(data), len(repeat))
            if data[:n] != repeat[:n] or share == 0 or (token in vocabulary.special and n < len(repeat)):
                continue
            if n < len(repeat):
                stack.append((longer, probability * share))
                continue
            offset, behind = 0, list(longer)  # the tokens behind the border: a first one may lie across it
            while offset < len(repeat):
                offset += len(vocabulary.tokens[behind.pop(0)])
            over = b"".join(vocabulary.tokens[i] for i in longer[: len(longer) - len(behind)])[len(repeat) :]
            extended = Vocabulary((*vocabulary.tokens, over), vocabulary.special, vocabulary.end_id)
            text, _ = symbols([len(vocabulary.tokens), *behind], extended)
            outcome = oracle_outcome(text, prompt)
            if outcome is None:
                stack.append((longer, probability * share))
                continue
            mass[outcome] += probability * share
            cuts[outcome].add((path, text[0] == " "))
    return dict(mass), cuts


def name_of(outcome: tuple[str, bytes | str]) -> str:
    kind, text = outcome
    if isinstance(text, str):
        return text
    return f"<{text[0]:02x}>" if kind == "byte" else text.decode()


def toy_question(seed: int) -> tuple[Toy, Search, str, bytes, State]:
    generator = random.Random(seed)
    tokens = [*generator.sample(POOL, generator.randint(4, 9)), b"", b""]
    vocabulary = Vocabulary(tuple(tokens), {len(tokens) - 2: "<|user|>", len(tokens) - 1: "<|end|>"}, len(tokens) - 1)
    prompt = generator.choice(PROMPTS).rstrip(" ")
    tables = Tables(vocabulary)
    repeat = prompt[-generator.randint(1, 3) :].encode() if prompt else b""
    repeat = repeat if any(repeat.startswith(token[: len(repeat)]) for token in tokens if token) else b""
    start = tables.rule.start(prompt, spaced=False)
    toy = Toy(vocabulary, seed)
    return toy, Search(toy, tables, start=start, border=repeat), prompt, repeat, start


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_every_true_probability_lies_within_its_bounds_at_every_step(first):
    certified = 0
    for seed in range(first, first + 100):
        toy, search, prompt, repeat, _ = toy_question(seed)
        true, cuts = enumerate_all(toy, prompt, repeat)
        new = {outcome: mass for outcome, mass in true.items() if outcome != "continues"}
        total = sum(new.values())
        if total == 0:
            assert search.total <= 1e-12 * search.continued or search.open > 0
            continue
        generator = random.Random(seed)
        aimed = seed % 2  # every other model is searched as `run` does it
        while True:
            assert search.done + search.open + search.continued + search.impossible == pytest.approx(1, abs=1e-9)
            shown = outcomes(search, 10**6)
            seen = {name_of(outcome) for outcome in search.closed}
            for outcome, row in zip(ranking(search), shown, strict=True):
                probability = new[name_of(outcome)] / total
                assert row.lower - 1e-9 <= probability <= row.upper + 1e-9, (seed, outcome)
            most = search.unseen()[0] / search.least
            assert all(mass / total <= most + 1e-9 for outcome, mass in new.items() if outcome not in seen), seed
            top = generator.randint(1, 5)
            if not disputes(search, top):
                certified += 1
                listed = [new[name_of(outcome)] / total for outcome in ranking(search)[:top]]
                best = sorted((mass / total for mass in new.values()), reverse=True)[:top]
                assert listed == pytest.approx(best[: len(listed)], abs=2e-9)
                assert all(mass <= 2e-9 for mass in best[len(listed) :])
            children = aim(search, disputes(search, top), generator.randint(0, 2)) if aimed else []
            children += search.best(generator.randint(1, 3), set(children))
            if not children:
                break
            search.expand(children)
        assert search.open < 1e-12
        found = {name_of(outcome): record for outcome, record in search.closed.items()}
        assert {outcome: record[0] for outcome, record in found.items()} == pytest.approx(new, abs=1e-12)
        assert search.continued == pytest.approx(true.get("continues", 0.0), abs=1e-12)
        assert {outcome: record[1] for outcome, record in found.items()} == {o: len(cuts[o]) for o in new}, seed
    assert certified > 50


def test_a_search_finds_the_best_outcomes_whatever_its_batches():
    for seed in range(40):
        toy, search, prompt, repeat, _ = toy_question(seed)
        true, _ = enumerate_all(toy, prompt, repeat)
        best = sorted((mass for outcome, mass in true.items() if outcome != "continues"), reverse=True)[:3]
        for batch in (1, 2, 7):
            _, search, *_ = toy_question(seed)
            if search.total == 0:
                continue
            stopped, _ = run(search, top=3, max_expansions=10**6, batch=batch)
            assert stopped == "certified" or search.open < 1e-12
            listed = [search.closed[outcome][0] for outcome in ranking(search)[:3]]
            true_listed = [true[name_of(outcome)] for outcome in ranking(search)[:3]]
            assert true_listed == pytest.approx(best, abs=1e-8)
            assert all(low <= high + 1e-9 for low, high in zip(listed, true_listed, strict=True))


def test_tokens_may_rank_otherwise_than_words():
    """`un` is the most probable token, but no word that begins so is as probable as `heart`."""
    tokens = (b" un", b" heart", b" gut", b"kind", b"fair", b"even", b"s", b".", b"")
    vocabulary = Vocabulary(tokens, {8: "<|end|>"}, 8)

    class Split(Toy):
        def logits(self, path: tuple[int, ...]) -> Tensor:
            shares = {(): {0: 0.5, 1: 0.3, 2: 0.2}, (0,): {3: 0.4, 4: 0.35, 5: 0.25}}.get(path, {7: 1.0})
            return torch.tensor([shares.get(token, 0.0) for token in range(9)], dtype=torch.float64).log()

    search = Search(Split(vocabulary, 0), Tables(vocabulary), start=State("lead"))
    assert run(search, top=4, max_expansions=100)[0] == "certified"
    shown = [(row.word, pytest.approx(row.lower)) for row in outcomes(search, 4)]
    assert shown == [("heart", 0.3), ("unkind", 0.2), ("gut", 0.2), ("unfair", 0.175)] or shown == [
        ("heart", 0.3), ("gut", 0.2), ("unkind", 0.2), ("unfair", 0.175),
    ]  # fmt: skip


CHARACTERS = "ab ,'\n"
CHAR = Vocabulary((*(letter.encode() for letter in CHARACTERS), b""), {len(CHARACTERS): "<|end|>"}, len(CHARACTERS))


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(letter) for letter in text]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_model_over_characters_a_word_is_the_product_of_its_characters(family):
    model = make(family, vocab_size=len(CHAR.tokens), context=24)
    prompt = "b,"
    found = next_word_distribution(
        model, Tables(CHAR), prompt, encode=encode, top=5, max_expansions=3000, tolerance=0.0
    )
    assert found.stopped == "certified"

    @torch.no_grad()
    def next_probabilities(text: str) -> Tensor:
        return torch.softmax(model(torch.tensor([encode(text)]))[0, -1].double(), -1)

    for row in found.words:
        if row.kind != "word":
            continue
        product = 0.0
        for lead in ("", " "):
            text, mass = prompt + lead, next_probabilities(prompt)[encode(" ")].item() if lead else 1.0
            for letter in row.word:
                mass *= next_probabilities(text)[CHARACTERS.index(letter)].item()
                text += letter
            ends = next_probabilities(text)
            after = 1 - ends[encode("ab'")].sum().item()
            apostrophe = next_probabilities(text + "'")
            after += ends[encode("'")].item() * (1 - apostrophe[encode("ab")].sum().item())
            product += mass * after
        assert row.lower - 1e-6 <= product <= row.upper + 1e-6, row


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_gives_the_logits_of_one_full_forward(family):
    model = make(family)
    generator = random.Random(0)
    prompt = [generator.randrange(96) for _ in range(9)]
    predictor = TreePredictor(model, prompt, compute=_float32())
    paths: list[list[int]] = [[]]
    with torch.no_grad():
        torch.testing.assert_close(predictor.root(), model(torch.tensor([prompt]))[0, -1], atol=1e-4, rtol=1e-4)
        for count in (1, 5, 17, 300):  # more than the cache begins with
            parents = [generator.randrange(len(paths)) for _ in range(count)]
            parents = [parent if len(paths[parent]) < 30 else 0 for parent in parents]
            tokens = [generator.randrange(96) for _ in range(count)]
            logits = predictor.expand(parents, tokens)
            new = [[*paths[parent], token] for parent, token in zip(parents, tokens, strict=True)]
            paths += new
            for row in generator.sample(range(count), min(count, 12)):
                full = model(torch.tensor([prompt + new[row]]))[0, -1]
                torch.testing.assert_close(logits[row], full, atol=1e-4, rtol=1e-4)


def _float32():
    from model.device import Compute

    return Compute(torch.device("cpu"), torch.float32, compile=False)


def ask(prompt: str, **options):
    model = make("modern", vocab_size=len(CHAR.tokens), context=24)
    return next_word_distribution(
        model, Tables(CHAR), prompt, encode=encode, **({"top": 5, "tolerance": 0.0, "max_tokens": 2000} | options)
    )


def test_spaces_behind_the_prompt_change_nothing():
    assert ask("ab b") == ask("ab b ") == ask("ab b   ")
    assert ask("ab b", token_healing=False) == ask("ab b")
    assert ask("ab b ", token_healing=False) != ask("ab b")


def test_exact_bytes_are_another_question():
    """After `b ` no outcome can stand without a space before it, and none continues the prompt's word."""
    found = ask("b ", token_healing=False)
    assert found.continues == 0
    assert ask("b").continues > 0


def test_the_search_says_why_it_stopped():
    assert ask("b").stopped == "certified"
    assert ask("b", max_expansions=2).stopped == "max_tokens"
    assert ask("b", max_expansions=2).evaluated == 2
    loose = ask("b", tolerance=0.9, top=40)
    assert loose.stopped == "tolerance" and 0 < loose.unexplored <= 0.9
    assert sum(row.lower for row in ask("b", top=10**6, tolerance=0.05).words) >= 0.95


def test_probabilities_and_what_is_unexplored_are_all_there_is():
    found = ask("b", top=10**6, tolerance=0.01)
    assert sum(row.lower for row in found.words) + found.unexplored == pytest.approx(1, abs=1e-9)


def test_a_filter_leaves_the_tree_of_the_filtered_distribution():
    greedy = ask("b", sampling=SamplingConfig(temperature=0))
    assert [row.lower for row in greedy.words] == pytest.approx([1.0])
    narrow = ask("b", sampling=SamplingConfig(top_k=2), top=100)
    assert len(narrow.words) < len(ask("b", top=100).words)


def test_where_nothing_new_can_begin_there_are_no_words():
    """The most probable letters all continue the prompt's word."""

    class Stuck(torch.nn.Module):
        config = make("modern", vocab_size=len(CHAR.tokens), context=24).config
        embed = torch.nn.Embedding(1, 1)

        def hidden(self, ids: Tensor, cache: object) -> Tensor:
            return ids[..., None].float()

        def head(self, h: Tensor) -> Tensor:
            return torch.tensor([0.0, 9.0, -9.0, -9.0, -9.0, -9.0, -9.0]).expand(len(h), -1)

    greedy = SamplingConfig(temperature=0)
    found = next_word_distribution(Stuck(), Tables(CHAR), "b", encode=encode, sampling=greedy)  # type: ignore[arg-type]
    assert (found.words, found.continues, found.unexplored, found.stopped) == ([], 1.0, 0.0, "certified")


def test_without_filters_a_sampling_config_changes_nothing():
    assert ask("b", sampling=SamplingConfig()) == ask("b")


def test_a_prompt_beyond_the_context_counts_by_its_end():
    assert ask("ab " * 50 + "ab a b, b a").words == ask("b " * 70 + "ab " * 50 + "ab a b, b a").words


def test_an_empty_prompt_is_the_start_of_a_text():
    assert ask("") == ask("  ")
    assert question("", Tables(CHAR), encode=encode) == ([CHAR.end_id], b"", State("lead"))
    assert question("ab ", Tables(CHAR), encode=encode) == ([0], b"b", State("edge"))
    assert question("a", Tables(CHAR), encode=encode) == ([CHAR.end_id], b"a", State("edge"))


def test_wrong_settings_are_refused_together():
    with pytest.raises(InputError) as caught:
        ask("b", border="word", top=0, max_expansions=0, tolerance=2)
    assert len(caught.value.args) == 4


def test_a_rule_reaches_the_search():
    model = make("modern", vocab_size=len(CHAR.tokens), context=24)
    tables = Tables(CHAR, WordRule(kind="character"))
    found = next_word_distribution(model, tables, "ab", encode=encode, top=7)
    assert {row.word for row in found.words} <= {*CHARACTERS, "<|end|>"}
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([encode("a") + encode("b")]))[0, -1].double(), -1)
    expected = sorted(probabilities.tolist(), reverse=True)
    assert [row.lower for row in found.words] == pytest.approx(expected[:7], abs=1e-5)
