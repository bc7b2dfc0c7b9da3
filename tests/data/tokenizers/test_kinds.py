"""Every kind of tokenizer: exact round trips, faithful saving and loading, damage detected."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import InputError
from data.tokenizers import bpe
from data.tokenizers.base import NAMES, digest
from data.tokenizers.bpe import format_ranks
from data.tokenizers.build import END, UNKNOWN, Tokenizer, TokenizerConfig, build, load
from data.tokenizers.kinds import KINDS

CORPUS = [
    "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind  to suffer\n\tThe slings and arrows",
    "Ces garçons, là-bas! 日本語のテキスト 😀😀 \u2581 ٣٤ naïve don't I'LL 12345\r\n\r\n    def f(x): return x\n",
] * 3
ODD = ["<|user|>", "a b", '"it\'s"', ".*(?P<x>[a-z]+)\\", "日本", "a b c", "\n\n", " "]
OWN_PATTERN = r"(\p{L})+'?|\d"
CONFIGS = {
    "byte": TokenizerConfig(kind="byte", special_tokens=ODD),
    "char": TokenizerConfig(kind="char", special_tokens=ODD),
    "bpe": TokenizerConfig(vocab_size=400, special_tokens=ODD),
    "bpe gpt4": TokenizerConfig(vocab_size=400, pattern="gpt4"),
    "bpe own": TokenizerConfig(vocab_size=400, pattern=OWN_PATTERN, special_tokens=ODD),
    "unigram": TokenizerConfig(kind="sentencepiece", vocab_size=400, special_tokens=ODD),
    "spm bpe": TokenizerConfig(kind="sentencepiece", algorithm="bpe", vocab_size=400),
    "ranks": TokenizerConfig(kind="tiktoken", pattern="gpt4", special_tokens=ODD),  # encoding: set by ranks_file()
}
ALL = pytest.mark.parametrize("name", CONFIGS)
LOSSLESS = pytest.mark.parametrize("name", [name for name in CONFIGS if name != "char"])
BYTE_LEVEL = pytest.mark.parametrize("name", ["byte", "bpe", "bpe gpt4", "bpe own", "ranks"])
TEXT = st.text(max_size=50) | st.text("ab'I \n\t\r\0\x1c\x85\ufeff\ufffd\u2581é日😀٣<0x41>", max_size=40)
PLANE = st.integers(0, 16).flatmap(lambda p: st.characters(min_codepoint=p << 16, max_codepoint=p << 16 | 0xFFFF))
PLANES = st.text(max_size=50) | st.text(PLANE.filter(lambda c: not 0xD800 <= ord(c) <= 0xDFFF), max_size=20) | TEXT
# tiktoken and regex may know different versions of Unicode: no characters that Python itself does not know.
ASSIGNED = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=50) | st.text(
    "ab'I \n\t1é日😀", max_size=40
)


@pytest.fixture(scope="module", autouse=True)
def ranks_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "odd name"
    ranks = bpe.train(CORPUS, vocab_size=350, pattern="gpt4")
    # Like other programs' encodings: byte ids differ from the byte values, and some ids are skipped.
    path.write_bytes(format_ranks({token: 2 * len(ranks) - rank for token, rank in list(ranks.items())[:256]}))
    with path.open("ab") as file:
        file.write(format_ranks({token: 800 + rank for token, rank in list(ranks.items())[256:]}))
    CONFIGS["ranks"].encoding = str(path)


@functools.cache
def made(name: str) -> Tokenizer:
    return build(CONFIGS[name], CORPUS)


@LOSSLESS
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_round_trip_of_any_text_is_exact(name: str, text: str) -> None:
    tokenizer = made(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert b"".join(tokenizer.token_bytes(number) for number in ids) == text.encode()


@pytest.mark.slow
@LOSSLESS
@settings(max_examples=10_000, deadline=None)
@given(text=PLANES)
def test_round_trip_of_ten_thousand_texts_is_exact(name: str, text: str) -> None:
    tokenizer = made(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


@pytest.mark.slow
@BYTE_LEVEL
@settings(max_examples=10_000, deadline=None)
@given(data=st.binary(max_size=100))
def test_ten_thousand_byte_strings_can_be_spelled(name: str, data: bytes) -> None:
    tokenizer = made(name)
    id_of = single_bytes(name)
    assert tokenizer.decode_bytes([id_of[byte] for byte in data]) == data


@functools.cache
def single_bytes(name: str) -> dict[int, int]:
    tokenizer = made(name)
    found = {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.vocab_size))}
    return {byte: found[bytes([byte])] for byte in range(256)}


@ALL
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_batches_and_single_texts_get_the_same_ids(name: str, texts: list[str]) -> None:
    tokenizer = made(name)
    batch = tokenizer.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.uint32] * len(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]


def test_char_keeps_its_characters_and_replaces_others() -> None:
    tokenizer = made("char")
    for text in CORPUS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Tž") == [tokenizer.encode("T")[0], tokenizer.special_tokens[UNKNOWN]]
    assert tokenizer.decode(tokenizer.encode("Tž😀😁")) == "T\ufffd😀\ufffd"


@BYTE_LEVEL
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_can_be_spelled_with_tokens(name: str, data: bytes) -> None:
    tokenizer = made(name)
    id_of = {tokenizer.token_bytes(number): number for number in reversed(range(tokenizer.vocab_size))}
    ids = [id_of[bytes([byte])] for byte in data]
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")
    assert tokenizer.decode_bytes(np.array(ids, np.uint16)) == data


@pytest.mark.parametrize("name", ["bpe", "bpe gpt4"])
@settings(max_examples=100, deadline=None)
@given(text=ASSIGNED)
def test_the_fast_encoder_equals_the_readable_one(name: str, text: str) -> None:
    tokenizer = made(name)
    assert tokenizer.encode(text) == bpe.encode(text, tokenizer.ranks, pattern=CONFIGS[name].pattern)


def test_the_fast_encoder_equals_the_readable_one_on_its_corpus_and_long_runs() -> None:
    for name in ("bpe", "bpe gpt4", "bpe own", "ranks"):
        tokenizer = made(name)
        for text in [*CORPUS, "e" * 3000, " " * 2500 + "t", "to " + "be" * 1500 + "or"]:
            assert tokenizer.encode(text) == bpe.encode(text, tokenizer.ranks, pattern=CONFIGS[name].pattern)


def test_a_pretoken_in_the_vocabulary_needs_no_merges(tmp_path: Path) -> None:
    ranks = {**bpe.SINGLE_BYTES, b"xyz": 256}
    (tmp_path / "my.tiktoken").write_bytes(format_ranks(ranks))
    tokenizer = build(TokenizerConfig(kind="tiktoken", encoding=str(tmp_path / "my.tiktoken")), [])
    for text, ids in (("xyz", [256]), ("xyza", [*b"xyza"])):
        assert tokenizer.encode(text) == bpe.encode(text, ranks) == ids


@LOSSLESS
@pytest.mark.parametrize("letter", ["a", " ", "😀"])
def test_a_megabyte_of_one_character_is_exact(name: str, letter: str) -> None:
    text = letter * (1_000_000 // len(letter.encode()))
    assert made(name).decode(made(name).encode(text)) == text


@ALL
def test_ids_of_special_tokens_come_last(name: str) -> None:
    tokenizer = made(name)
    last = range(tokenizer.vocab_size - len(tokenizer.special_tokens), tokenizer.vocab_size)
    assert list(tokenizer.special_tokens.values()) == list(last)
    assert tokenizer.end_id == tokenizer.special_tokens[END]
    if CONFIGS[name].kind in ("bpe", "sentencepiece"):
        assert tokenizer.vocab_size <= CONFIGS[name].vocab_size


@ALL
def test_a_tokenizer_is_the_same_after_saving_and_loading(name: str, tmp_path: Path) -> None:
    tokenizer = made(name)
    tokenizer.save(tmp_path / "new" / "tokenizer")
    loaded = load(tmp_path / "new" / "tokenizer")
    for text in [*CORPUS, *ODD, "é \u2581 x  y"]:
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == ids
        assert loaded.decode_bytes(ids) == tokenizer.decode_bytes(ids)
    assert (loaded.kind, loaded.vocab_size, loaded.special_tokens) == (
        tokenizer.kind, tokenizer.vocab_size, tokenizer.special_tokens
    )  # fmt: skip
    assert loaded.fingerprint == tokenizer.fingerprint
    opened = build(TokenizerConfig(kind="nonsense", path=str(tmp_path / "new" / "tokenizer")), [])
    assert opened.fingerprint == tokenizer.fingerprint


@ALL
def test_the_fingerprint_depends_only_on_the_content(name: str) -> None:
    again = build(CONFIGS[name], iter(CORPUS))
    assert again.fingerprint == made(name).fingerprint
    assert len({made(other).fingerprint for other in CONFIGS}) == len(CONFIGS)


@ALL
def test_a_damaged_directory_is_an_input_error(name: str, tmp_path: Path) -> None:
    made(name).save(tmp_path)
    place = tmp_path / "tokenizer.json"
    good = place.read_text()
    about = json.loads(good)
    assert about.pop("sha256") == made(name).fingerprint
    content = (tmp_path / made(name).model_file).read_bytes() if made(name).model_file else b""
    hostile = [
        *({**about, "special_tokens": tokens} for tokens in ({}, [], {END: 0}, {END: "9"}, {END: -1}, {"x": 9}, None)),
        *({**about, "special_tokens": {END: end}} for end in (10**12, 5000, True, 300.5)),
        *({**about, key: value} for key in about for value in (None, 7, []) if about[key] != value),
        *({other: value for other, value in about.items() if other != key} for key in about),
    ]
    damaged = [
        "", "[]", "null", good[:-10], good + "x", "\x00", "[" * 100_000, '{"format": 1}',
        *(json.dumps({**about, **change, "sha256": "0" * 64}) for change in ({}, {"pattern": "x"}, {"kind": "byte"})),
        *(json.dumps({**description, "sha256": digest(description, content)}) for description in hostile),
    ]  # fmt: skip
    for text in damaged:
        place.write_text(text)
        with pytest.raises(InputError) as caught:
            load(tmp_path)
        assert str(tmp_path) in str(caught.value) or "tokenizer.pattern" in str(caught.value)
        assert "\n" not in str(caught.value)
    place.unlink()
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path)


def test_the_order_of_the_fields_does_not_matter(tmp_path: Path) -> None:
    made("bpe").save(tmp_path)
    place = tmp_path / "tokenizer.json"
    place.write_text(json.dumps(json.loads(place.read_text()), sort_keys=True))
    assert load(tmp_path).fingerprint == made("bpe").fingerprint


def test_another_format_version_is_named(tmp_path: Path) -> None:
    made("byte").save(tmp_path)
    place = tmp_path / "tokenizer.json"
    place.write_text(place.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="format 2; this program reads format 1"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["bpe", "unigram", "ranks"])
def test_a_damaged_model_file_is_an_input_error(name: str, tmp_path: Path) -> None:
    made(name).save(tmp_path)
    place = tmp_path / made(name).model_file
    good = place.read_bytes()
    for content in (b"", good[:-1], good[:50] + bytes([good[50] ^ 1]) + good[51:], b"\xff" * 100):
        place.write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            load(tmp_path)
    place.unlink()
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path)


def test_every_kind_is_listed() -> None:
    assert tuple(KINDS) == NAMES


def test_validation_lists_every_problem() -> None:
    config = TokenizerConfig(
        vocab_size=258, pattern="(", special_tokens=["x", "x", "", END, "\ud800"], algorithm="best"
    )  # fmt: skip
    problems = config.validate()
    for value in ("vocab_size=258", "pattern='('", "[1]='x'", "[2]=''", f"[3]='{END}'", "[4]='\\ud800'", "'best'"):
        assert any(value in problem for problem in problems), value
    assert len(problems) == 7
    assert TokenizerConfig(kind="bpee").validate() == [
        "tokenizer.kind='bpee' is not one of byte, char, bpe, sentencepiece, tiktoken"
    ]
    assert TokenizerConfig(kind="char", special_tokens=[UNKNOWN]).validate()
    with pytest.raises(InputError, match="bpee"):
        build(TokenizerConfig(kind="bpee"), [])
    assert all(not config.validate() for config in CONFIGS.values())


@pytest.mark.parametrize("pattern", ["(", "a*", "", "(?=b)", r"(?|ab|cd)"])
def test_patterns_that_one_of_the_two_engines_rejects(pattern: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.pattern="):
        build(TokenizerConfig(pattern=pattern), ["abc"])


@pytest.mark.parametrize("pattern", ["gpt9", "GPT-4", "cl100k_base"])
def test_a_bare_word_is_not_a_pattern(pattern: str, tmp_path: Path) -> None:
    (problem,) = TokenizerConfig(pattern=pattern).validate()
    assert all(part in problem for part in (repr(pattern), "gpt2", "gpt4")) and "\n" not in problem
    assert not TokenizerConfig(pattern=pattern, kind="char").validate()
    assert not TokenizerConfig(pattern=r"\w").validate()


def test_a_pattern_for_an_encoding_that_has_its_own_is_refused() -> None:
    (problem,) = TokenizerConfig(kind="tiktoken", pattern="gpt4").validate()
    assert "tokenizer.encoding=gpt2 has its own" in problem
    assert not TokenizerConfig(kind="tiktoken", pattern="gpt4", encoding="my.tiktoken").validate()


@pytest.mark.parametrize("ids", [[-1], [0, 10**9], [257], np.array([300])])
def test_an_id_of_another_tokenizer_is_an_input_error(ids) -> None:
    with pytest.raises(InputError, match="is not in 0 to 256"):
        build(TokenizerConfig(kind="byte"), []).decode(ids)


@LOSSLESS
def test_lone_surrogates_become_replacement_characters(name: str) -> None:
    tokenizer = made(name)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"
    assert build(TokenizerConfig(kind="char"), ["\udfff"]).vocab_size == 3


@pytest.mark.parametrize("texts", [[], [""], ["a"]])
def test_little_text_gives_a_small_vocabulary_or_a_clear_error(texts: list[str]) -> None:
    for kind in ("byte", "char", "bpe"):
        tokenizer = build(TokenizerConfig(kind=kind), texts)
        assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
        assert tokenizer.decode([tokenizer.end_id]) == END
    if texts != ["a"]:
        with pytest.raises(InputError, match="no text"):
            build(TokenizerConfig(kind="sentencepiece"), texts)


@pytest.mark.parametrize("name", ["unigram", "spm bpe"])
def test_sentencepiece_spends_no_tokens_on_line_ends(name: str) -> None:
    tokens = [made(name).token_bytes(number) for number in range(made(name).end_id)]
    assert [token for token in tokens if b"\n" in token] == [b"\n"]


def test_too_small_a_sentencepiece_vocabulary_is_an_input_error() -> None:
    with pytest.raises(InputError, match="vocab_size=260") as caught:
        build(TokenizerConfig(kind="sentencepiece", vocab_size=260), CORPUS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [InputError("changed"), KeyboardInterrupt(), OSError("gone")])
def test_an_error_while_reading_is_not_blamed_on_sentencepiece(error: BaseException) -> None:
    def texts() -> Iterator[str]:
        yield "some words and more words " * 50
        raise error

    with pytest.raises(type(error)) as caught:
        build(TokenizerConfig("sentencepiece", vocab_size=300), texts())
    assert caught.value is error


def test_named_encodings_without_a_network_point_to_ranks_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def offline(name: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    monkeypatch.setattr("data.tokenizers.gpt2_files.provide", lambda cache: None)
    with pytest.raises(InputError, match=r"tokenizer\.encoding=PATH\.tiktoken"):
        build(TokenizerConfig(kind="tiktoken"), [])
    with pytest.raises(InputError, match="neither a ranks file nor one of gpt2"):
        build(TokenizerConfig(kind="tiktoken", encoding="gpt22"), [])
    with pytest.raises(InputError, match="cannot read"):
        build(TokenizerConfig(kind="tiktoken", encoding="missing.tiktoken"), [])


def test_named_encodings_keep_their_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tiktoken

    ranks = bpe.train(CORPUS, vocab_size=300)
    ranks = {token: rank if rank < 280 else rank + 1 for token, rank in ranks.items()}  # as p50k: END in between
    encoding = tiktoken.Encoding(
        "p50k_base", pat_str=r" ?\p{L}+|\s+|.", mergeable_ranks=ranks, special_tokens={END: 280, "<|x|>": 310}
    )  # fmt: skip
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    tokenizer = build(TokenizerConfig(kind="tiktoken", encoding="o200k_base", special_tokens=["<|x|>", "new"]), [])
    assert tokenizer.special_tokens == {END: 280, "<|x|>": 310, "new": 311}
    text = f"to be {END} or<|x|>"
    assert tokenizer.encode(text) == encoding.encode_ordinary(text)
    tokenizer.allow_special = True
    assert tokenizer.encode(text) == encoding.encode(text, allowed_special={"<|x|>"}, disallowed_special=())
    tokenizer.allow_special = False
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.token_bytes(305)) == (312, 280, b"")
    tokenizer.save(tmp_path)
    assert load(tmp_path).encode(text) == encoding.encode_ordinary(text)
