"""The fast encoder gives the ids of tiktoken, whatever its table already holds."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.tokenizers import bpe, encoder, pretokenize
from data.tokenizers.encoder import Encoder, tiktoken_encoding
from data.tokenizers.pretokenize import PATTERNS, Pattern
from tests.data.tokenizers.test_pretokenize import ALPHABETS, OWN_PATTERN, random_runs, random_text

WORDS = "the there's don't self.value[index] = f(x) 1234 56a _b_ naïve être 日本語 🙂 ''' A'LL x's".split()
WORDS += ["\r\n", "\n\n\t", ":\n", ";\n   ", ")\n\n"]


@pytest.fixture(autouse=True)
def look_up_short_texts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MIN_LOOKUP", 0)


def ranks_for(name: str) -> dict[bytes, int]:
    return bpe.train(["".join(ALPHABETS) + " ".join(WORDS * 3)], vocab_size=400, pattern=name)


def random_words(source: random.Random) -> str:
    return source.choice(["", " ", "\n"]).join(source.choices(WORDS, k=source.randrange(30)))


def check(name: str, batches: list[list[str]], ranks: dict[bytes, int]) -> None:
    pattern = Pattern(name)
    tiktoken, ours = tiktoken_encoding(ranks, pattern), Encoder(ranks, pattern)
    for texts in batches:
        encoded = ours.encode_batch(texts)
        assert len(encoded) == len(texts) and all(ids.dtype == np.uint32 for ids in encoded)
        for text, ids in zip(texts, encoded, strict=True):
            segments = pattern.segments(text)
            expected = [token for segment in segments for token in tiktoken.encode_ordinary(segment)]
            assert ids.tolist() == expected, ascii(text)


@pytest.mark.parametrize("name", ["gpt2", "gpt4", OWN_PATTERN])
@pytest.mark.parametrize("small", [False, True])
def test_ids_equal_tiktokens(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:  # spans replace each other, and the table is started over again and again
        monkeypatch.setattr(encoder, "N_SLOTS", 8)
        monkeypatch.setattr(encoder, "MAX_IDS", 100)
        monkeypatch.setattr(encoder, "BLOCK", 7)
        monkeypatch.setattr(pretokenize, "BATCH", 20)
    source = random.Random(9)
    batches = [[source.choice([random_text, random_words])(source) for _ in range(20)] for _ in range(100)]
    check(name, batches, ranks_for(name))


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_long_runs_and_odd_batches(name: str) -> None:
    source = random.Random(10)
    batches = [[random_runs(source) for _ in range(3)] for _ in range(20)]
    check(name, [[], [""], ["", "a", ""], ["a\0b", "c"], ["\0"], [")", "\n  ", "\n\nx"], *batches], ranks_for(name))


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_a_pretoken_ends_at_every_cut_in_any_context(name: str) -> None:
    # All pairs of bytes with a cut between them, in all contexts of a few characters.
    source, compiled = random.Random(11), Pattern(name).compiled
    table = encoder.CUTS[PATTERNS[name]].reshape(256, 256)
    for right, left in np.argwhere(table).tolist():
        for _ in range(3):
            before, after = ("".join(source.choices("a1 .'\n\rsé_", k=3)) for _ in range(2))
            whole = before + chr(left), chr(right) + after
            assert compiled.findall("".join(whole)) == [
                pretoken for part in whole for pretoken in compiled.findall(part)
            ]


def test_several_threads_encode_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "N_SLOTS", 8)  # the threads replace each other's spans all the time
    monkeypatch.setattr(encoder, "MAX_IDS", 100)
    pattern, ranks, source = Pattern("gpt2"), ranks_for("gpt2"), random.Random(11)
    tiktoken, ours = tiktoken_encoding(ranks, pattern), Encoder(ranks, pattern)
    texts = [random_words(source) for _ in range(200)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda text: ours.encode_batch([text])[0].tolist(), texts * 4))
    finally:
        sys.setswitchinterval(interval)
    segments = [pattern.segments(text) for text in texts]
    expected = [[t for segment in some for t in tiktoken.encode_ordinary(segment)] for some in segments]
    assert found == expected * 4
