"""Fertility: words and tokens are counted by their definition, for each script."""

from __future__ import annotations

import pytest

from data.tokenizers.build import Tokenizer, TokenizerConfig, build
from data.tokenizers.fertility import fertility, words_of

CORPUS = ["low lower lowest low low\n", "слово слова 日本語 naïve"]


def of(tokenizer: Tokenizer, *texts: str) -> dict[str, dict[str, int | float]]:
    return fertility(tokenizer, list(map(words_of, texts)), tokenizer.encode_batch(list(texts)))


def test_words_are_runs_of_letters_of_one_script() -> None:
    found = of(build(TokenizerConfig(kind="byte"), []), "It's naïve: 日本語ひら слово x1y2", "é")
    assert {name: (script["words"], script["characters"]) for name, script in found.items()} == {
        "Latin": (6, 11), "Cyrillic": (1, 5), "Han": (1, 3), "Hiragana": (1, 2)
    }  # fmt: skip
    assert [script["tokens"] for script in found.values()] == [13, 10, 9, 6]
    assert found["Han"]["per_character"] == 3 and found["Han"]["per_word"] == 9


def test_a_token_counts_for_each_word_that_it_overlaps() -> None:
    tokenizer = build(TokenizerConfig(vocab_size=300), CORPUS)
    assert " low" in [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    assert of(tokenizer, "x low low")["Latin"] == {
        "words": 3, "characters": 7, "tokens": 3, "per_word": 1, "per_character": 3 / 7
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "sentencepiece"])
def test_any_text_can_be_measured(kind: str) -> None:
    tokenizer = build(TokenizerConfig(kind=kind, vocab_size=300), CORPUS)
    texts = [*CORPUS, "", "unseen: ₿ ß 한국 🙂", " "]
    found = of(tokenizer, *texts)
    assert found["Latin"]["words"] == 8 and found["Hangul"]["words"] == 1
    if kind in ("byte", "char"):
        assert of(tokenizer, "слово")["Cyrillic"]["tokens"] == len(tokenizer.encode("слово"))
    assert all(script["tokens"] > 0 for script in found.values())
    assert of(tokenizer) == {}
