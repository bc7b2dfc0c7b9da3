"""An exported tokenizer.json gives the same ids in Hugging Face's libraries as the tokenizer gives here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data import InputError
from data.exchange.byte_level.vocabulary import BYTE_CHARS
from data.exchange.tokenizer_json import to_tokenizer_json
from data.tokenizers import bpe
from data.tokenizers.bpe import format_ranks
from data.tokenizers.build import END, Tokenizer, TokenizerConfig, build
from data.tokenizers.pretokenize import MAX_RUN
from tests.data.tokenizers.test_encoder import WORDS
from tests.data.tokenizers.test_pretokenize import ALPHABETS, random_text

CORPUS = [" ".join(WORDS) * 3, "To be, or not to be: that is the question.\n" * 3, "aaaa aaa aa abab babab " * 5]
CONFIGS = {
    "gpt2": TokenizerConfig(vocab_size=420),
    "gpt4": TokenizerConfig(vocab_size=420, pattern="gpt4", special_tokens=["<|user|>", "a b"]),
    "own": TokenizerConfig(vocab_size=400, pattern=r"\w+| +|[^\w\s]+"),
    "byte": TokenizerConfig(kind="byte"),
}


def opened(tokenizer: Tokenizer, folder: Path):
    tokenizers = pytest.importorskip("tokenizers")
    (folder / "tokenizer.json").write_text(json.dumps(to_tokenizer_json(tokenizer)), encoding="utf-8")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def random_repeats(source: random.Random) -> str:
    return "".join(source.choices("ab ", k=source.randrange(30)))


@pytest.mark.parametrize("name", CONFIGS)
def test_ids_are_equal_on_any_text(name: str, tmp_path: Path) -> None:
    tokenizer = build(CONFIGS[name], CORPUS)
    tokenizer.allow_special = True
    theirs, source = opened(tokenizer, tmp_path), random.Random(12)
    texts = [*CORPUS, *(source.choice([random_text, random_repeats])(source) for _ in range(3000))]
    texts += [" ".join(source.choices(WORDS, k=20)) for _ in range(200)]
    newer = set(ALPHABETS[5]) - set(" \n\r.a1")  # letters that only a recent Unicode has
    for text in texts:
        if not newer & set(text):
            ids = theirs.encode(text).ids
            assert ids == tokenizer.encode(text), ascii(text)
            assert theirs.decode(ids, skip_special_tokens=False) == text


def test_transformers_opens_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = build(CONFIGS["gpt4"], CORPUS)
    opened(tokenizer, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    user, end = tokenizer.special_tokens["<|user|>"], tokenizer.end_id
    ids = [*tokenizer.encode("To be"), end, user, *tokenizer.encode(" or not")]
    assert theirs(f"To be{END}<|user|> or not")["input_ids"] == ids
    assert theirs.convert_tokens_to_ids(END) == tokenizer.end_id and len(theirs) == tokenizer.vocab_size


def test_a_pretoken_in_the_vocabulary_is_one_token_even_if_merges_do_not_lead_to_it(tmp_path: Path) -> None:
    tokens = [b"bc", b"ab", b"cd", b"abcd"]  # in "abcd", b and c merge first, and then nothing else can
    ranks = bpe.SINGLE_BYTES | {token: 256 + number for number, token in enumerate(tokens)}
    (tmp_path / "own.tiktoken").write_bytes(format_ranks(ranks))
    tokenizer = build(TokenizerConfig(kind="tiktoken", encoding=str(tmp_path / "own.tiktoken")), [])
    theirs = opened(tokenizer, tmp_path)
    for text in ("abcd", "abcd abcd", "xabcd", "abcde"):
        assert theirs.encode(text).ids == tokenizer.encode(text), text
    assert tokenizer.encode("abcd") == [259] and len(tokenizer.encode("abcde")) == 4


def test_bytes_are_spelled_as_in_gpt2() -> None:
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    assert sorted(BYTE_CHARS) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert [BYTE_CHARS[byte] for byte in b" a\n"] == ["Ġ", "a", "Ċ"]


def test_ids_are_equal_for_the_longest_run_that_is_not_cut(tmp_path: Path) -> None:
    tokenizer = build(CONFIGS["gpt2"], CORPUS)
    text = "a" * (MAX_RUN - 1)
    assert opened(tokenizer, tmp_path).encode(text).ids == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["char", "sentencepiece"])
def test_other_kinds_cannot_be_exported(kind: str) -> None:
    with pytest.raises(InputError, match=f"of kind {kind} cannot be exported"):
        to_tokenizer_json(build(TokenizerConfig(kind=kind, vocab_size=400), CORPUS))
