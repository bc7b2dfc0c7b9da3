"""Special tokens: text that looks like one stays text, unless the tokenizer allows declared ones."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import InputError
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers.build import END, UNKNOWN, Tokenizer, TokenizerConfig, build, load
from data.tokenizers.kinds import KINDS
from tests.data.tokenizers.test_kinds import CONFIGS, CORPUS, made, ranks_file

ALL = pytest.mark.parametrize("name", CONFIGS)
USER, BOT = "<|user|>", "<|bot|>"
CHAT = [f"{USER}how are you{BOT}very well, and you{USER}well too\n" * 20]
ranks_file = ranks_file  # a fixture of this module too


def allowing(name: str) -> Tokenizer:
    tokenizer = copy.copy(made(name))
    tokenizer.allow_special = True
    return tokenizer


@ALL
def test_special_tokens_in_text_stay_text_unless_allowed(name: str) -> None:
    tokenizer, allowed = made(name), allowing(name)
    special = {number for token, number in tokenizer.special_tokens.items() if token != UNKNOWN}
    for token, number in tokenizer.special_tokens.items():
        assert not set(tokenizer.encode(token)) & special
        if token not in (END, UNKNOWN):
            assert allowed.encode(token) == [number]
            assert allowed.encode(f"To{token}be{token}{token}") == [
                *tokenizer.encode("To"), number, *tokenizer.encode("be"), number, number
            ]  # fmt: skip
    assert tokenizer.end_id not in allowed.encode(f"To{END}be")  # it only ends documents
    assert tokenizer.decode([tokenizer.end_id]) == END
    for text in CORPUS:
        assert allowed.decode(allowed.encode(text)) == text
        assert [ids.tolist() for ids in allowed.encode_batch([text, "", text])][2] == allowed.encode(text)


def test_the_longest_special_token_wins() -> None:
    assert allowing("bpe").encode("a b c") == [made("bpe").special_tokens["a b c"]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tiktoken"])
def test_an_allowed_special_token_is_one_token_and_is_not_learned_letter_by_letter(kind: str, tmp_path: Path) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=300, special_tokens=[USER, BOT], allow_special=True)
    tokenizer = build(config, CHAT)
    user, bot = (tokenizer.special_tokens[name] for name in (USER, BOT))
    ids = tokenizer.encode(CHAT[0])
    assert ids.count(user) == 40 and ids.count(bot) == 20 and tokenizer.decode(ids) == CHAT[0]
    learned = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size) if token not in (user, bot)]
    assert not any(len(token) > 1 and b"|" in token for token in learned if token != END.encode())
    tokenizer.save(tmp_path)
    assert load(tmp_path).encode(CHAT[0]) == ids
    assert tokenizer.fingerprint != build(replace(config, allow_special=False), CHAT).fingerprint


def test_a_tokenizer_that_does_not_allow_them_is_saved_as_before(tmp_path: Path) -> None:
    made("bpe").save(tmp_path)
    about = json.loads((tmp_path / "tokenizer.json").read_text())
    assert "allow_special" not in about
    (tmp_path / "tokenizer.json").write_text(json.dumps(about | {"allow_special": 1}))
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path)


def test_allowing_nothing_is_refused() -> None:
    (problem,) = TokenizerConfig(allow_special=True).validate()
    assert "tokenizer.special_tokens" in problem


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_a_corpus_with_special_tokens_is_prepared_with_them_or_says_that_they_are_text(kind: str, tmp_path) -> None:
    (tmp_path / "chat.txt").write_text(CHAT[0])
    said: list[str] = []

    def prepared(**options) -> Path:
        tokenizer = TokenizerConfig(kind=kind, special_tokens=[USER, BOT, "<|never|>"], **options)
        config = PrepareConfig(
            corpus=str(tmp_path / "chat.txt"), datasets=str(tmp_path / "datasets"), val_fraction=0, tokenizer=tokenizer
        )
        said.clear()
        return prepare(config, say=said.append)

    for _ in range(2):  # also when the corpus is already prepared
        folder = prepared()
        (note,) = [line for line in said if line.startswith("note")]
        assert f"'{USER}' 40 times, '{BOT}' 20 times" in note and "tokenizer.allow_special=true" in note
    text_tokens = open_split(folder, "train").n_tokens
    folder = prepared(allow_special=True)
    assert not [line for line in said if line.startswith("note")]
    tokenizer, split = load(folder / "tokenizer"), open_split(folder, "train")
    counts = np.bincount(split.tokens[:], minlength=tokenizer.vocab_size)
    assert [counts[tokenizer.special_tokens[name]] for name in (USER, BOT)] == [40, 20]
    assert split.n_tokens < text_tokens
    assert tokenizer.decode(split.tokens[1:-1]) == CHAT[0]
