"""The tokenizer in GGUF metadata: written and read, it gives the same ids; what it cannot express is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data import InputError
from data.exchange.byte_level.patterns import BY_PRE, CUTS
from data.exchange.mixed_text import fuzz_strings, mixed_text
from data.exchange.tokenizer_gguf import CONTROL, NORMAL, UNUSED, USER_DEFINED, from_gguf, to_gguf
from data.labelled.templates import CHAT_TEMPLATES
from data.tokenizers.bpe import SINGLE_BYTES
from data.tokenizers.build import END, Tokenizer, TokenizerConfig, build
from data.tokenizers.kinds import BytePairTokenizer, TiktokenTokenizer

TEXT = mixed_text(60_000)
KEY = "tokenizer.ggml."
NAMED = [name for name, cut in CUTS.items() if cut.pre]


def trained(expression: str) -> BytePairTokenizer:
    config = TokenizerConfig(vocab_size=500, pattern=expression, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer = build(config, [TEXT])
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return to_gguf(trained("gpt2"), CHAT_TEMPLATES["chatml"])


@pytest.mark.parametrize("name", NAMED)
def test_a_written_tokenizer_is_read_with_the_same_ids(name: str) -> None:
    tokenizer = trained(CUTS[name].expression)
    metadata = to_gguf(tokenizer, CHAT_TEMPLATES["chatml"])
    assert metadata[f"{KEY}pre"] == CUTS[name].pre[0] and len(metadata[f"{KEY}tokens"]) == 500
    read = from_gguf(metadata)
    assert not read.notes and read.chat == CHAT_TEMPLATES["chatml"]
    assert read.tokenizer.special_tokens == tokenizer.special_tokens and read.tokenizer.start_id is None
    for text in (TEXT, *fuzz_strings(200, 7)):
        assert read.tokenizer.encode(text) == tokenizer.encode(text)
    again = to_gguf(read.tokenizer, read.chat)
    assert again == metadata


def test_roles_and_types(metadata: dict[str, Any]) -> None:
    tokenizer = trained("gpt2")
    special = tokenizer.special_tokens
    types = metadata[f"{KEY}token_type"]
    assert {token for token, kind in enumerate(types) if kind == CONTROL} == {*special.values()}
    assert metadata[f"{KEY}eos_token_id"] == special["<|im_end|>"]  # what ends an answer
    assert metadata[f"{KEY}bos_token_id"] == metadata[f"{KEY}padding_token_id"] == tokenizer.end_id
    assert metadata[f"{KEY}add_bos_token"] is False
    plain = to_gguf(tokenizer)
    assert plain[f"{KEY}eos_token_id"] == tokenizer.end_id and "tokenizer.chat_template" not in plain


def test_ids_that_the_vocabulary_skips_are_unused() -> None:
    ranks = SINGLE_BYTES | {b"ab": 260}
    metadata = to_gguf(TiktokenTokenizer(ranks, {END: 262}, pattern="gpt2"))
    tokens, types = metadata[f"{KEY}tokens"], metadata[f"{KEY}token_type"]
    assert len({*tokens}) == 263 and [token for token, kind in enumerate(types) if kind == UNUSED] == [
        *range(256, 260),
        261,
    ]
    again = from_gguf(metadata).tokenizer
    assert again.vocab_size == 263 and again.encode("ab") == [260]


def test_a_start_token_is_written_and_read() -> None:
    tokenizer = trained("gpt2")
    tokenizer.start_id = tokenizer.special_tokens["<|im_start|>"]
    metadata = to_gguf(tokenizer)
    assert metadata[f"{KEY}add_bos_token"] and metadata[f"{KEY}bos_token_id"] == tokenizer.start_id
    assert from_gguf(metadata).tokenizer.start_id == tokenizer.start_id


def unreachable() -> Tokenizer:
    tokens = [b"bc", b"ab", b"cd", b"abcd"]  # in "abcd", b and c merge first, and then nothing else can
    ranks = SINGLE_BYTES | {token: 256 + number for number, token in enumerate(tokens)}
    return TiktokenTokenizer(ranks, {END: 260}, pattern="gpt2")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(TokenizerConfig(kind="char"), ["ab"]), "kind char cannot be exported to GGUF; only bpe"),
        (lambda: build(TokenizerConfig(kind="byte"), []), "kind byte cannot be exported to GGUF"),
        (
            lambda: build(TokenizerConfig(kind="sentencepiece", vocab_size=400), ["a b " * 9]),
            "kind sentencepiece",
        ),
        (lambda: trained("gpt4"), "has no name in GGUF"),
        (lambda: trained(r"\w+|\s+"), "has no name in GGUF"),
        (unreachable, "no merges lead to its token 'abcd'"),
        (
            lambda: build(TokenizerConfig(vocab_size=400, special_tokens=["a"]), [TEXT]),
            "special token 'a' has the name of an ordinary token",
        ),
    ],
)
def test_what_the_format_cannot_express_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_gguf(make())


HOSTILE: dict[str, tuple[str, Any, str]] = {
    "sentencepiece": ("model", "llama", "import the model's Hugging Face folder"),
    "no model": ("model", None, "no known kind"),
    "default": ("pre", "default", ", ".join(BY_PRE)),
    "list": ("pre", [], "not one of"),
    "no tokens": ("tokens", None, "is missing, or no list of texts"),
    "numbers": ("merges", [1, 2], "is missing, or no list of texts"),
    "one part": ("merges", ["ab"], "not two tokens"),
    "unknown part": ("merges", ["ab cd"], "which is no token"),
    "few types": ("token_type", [1, 1], "damaged"),
    "type": ("token_type", [6] * 500, "of type 6"),
    "user defined": ("token_type", [USER_DEFINED] * 500, "found in any text"),
    "end": ("eos_token_id", 500, "eos_token_id=500"),
    "text as end": ("eos_token_id", "2", "eos_token_id=2"),
    "adds end": ("add_eos_token", True, "add_eos_token"),
    "repetition": ("tokens", ["a"] * 500, "repetition"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_damaged_is_refused_in_one_line(name: str, metadata: dict[str, Any]) -> None:
    key, value, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as error:
        from_gguf(metadata | {f"{KEY}{key}": value})
    assert "\n" not in str(error.value)


def test_an_end_token_that_is_not_marked_as_one_is_special_all_the_same(metadata: dict[str, Any]) -> None:
    types = [NORMAL if kind == CONTROL else kind for kind in metadata[f"{KEY}token_type"]]
    read = from_gguf(metadata | {f"{KEY}token_type": types})
    assert read.tokenizer.special_tokens.keys() >= {"<|im_end|>", END}


def test_transformers_reads_the_same_ids(metadata: dict[str, Any], tmp_path: Path) -> None:
    gguf, transformers = pytest.importorskip("gguf"), pytest.importorskip("transformers")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in metadata.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        if key not in (f"{KEY}model", f"{KEY}pre"):
            add[type(value)](key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    tokenizer = trained("gpt2")
    for text in fuzz_strings(100, 9):
        assert theirs(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)
