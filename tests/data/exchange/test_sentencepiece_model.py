"""A sentencepiece model from elsewhere gives sentencepiece's ids, or is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from data import InputError
from data.exchange.mixed_text import fuzz_strings, mixed_text
from data.exchange.tokenizer_json import from_huggingface
from data.labelled.rows import encode_segments
from data.labelled.templates import Segment
from data.tokenizers.build import END, load

sentencepiece = pytest.importorskip("sentencepiece")
TEXT = mixed_text(30_000)
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}


def trained(folder: Path, **options: Any) -> Any:
    model = io.BytesIO()
    lines = [line[:500] for line in TEXT.split("\n") if line]
    options = {"model_type": "bpe", "vocab_size": 700, "hard_vocab_limit": False, "minloglevel": 2} | LLAMA | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("options", [{}, {"model_type": "unigram"}, {"add_dummy_prefix": False}])
def test_ids_are_sentencepieces(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = trained(tmp_path, **options)
    read = from_huggingface(tmp_path)
    tokenizer = read.tokenizer
    tokenizer.save(tmp_path / "ours")
    prefix = " " if options.get("add_dummy_prefix", True) else ""
    for text in (TEXT, *fuzz_strings(300, 3)):
        ids = theirs.encode(text)
        assert tokenizer.encode(text) == ids == load(tmp_path / "ours").encode(text), ascii(text[:100])
        decoded = (prefix + text if text else "").replace("\u2581", " ")
        assert tokenizer.decode(ids) == decoded and tokenizer.decode_bytes(ids) == decoded.encode()
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, END: 2}
    assert (tokenizer.start_id, tokenizer.end_name) == (1, "</s>") and "is called" in read.notes[0]
    assert tokenizer.unknown("a\u2581b") == {"\u2581": 1} and not tokenizer.unknown("a b")


def test_only_the_beginning_of_a_text_has_the_prefix(tmp_path: Path) -> None:
    trained(tmp_path)
    tokenizer = from_huggingface(tmp_path).tokenizer
    assert tokenizer.decode(tokenizer.encode("The", continued=True)) == "The"
    [parts] = encode_segments([[Segment("The"), Segment(" night")]], tokenizer)
    assert [tokenizer.decode(ids) for ids in parts] == [" The", " night"]
    [parts] = encode_segments([[Segment("<s>", special=True), Segment("The")]], tokenizer)
    assert [tokenizer.decode(ids) for ids in parts] == ["<s>", "The"]


def test_added_tokens_follow_the_model(tmp_path: Path) -> None:
    size = trained(tmp_path).vocab_size()
    config = {"eos_token": "<|im_end|>", "add_bos_token": False}
    config["added_tokens_decoder"] = {str(size): {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = from_huggingface(tmp_path).tokenizer
    assert (tokenizer.end_id, tokenizer.start_id, tokenizer.vocab_size) == (size, None, size + 1)
    config["added_tokens_decoder"] = {"5": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="of another token"):
        from_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "replaces characters"),
        ({"remove_extra_whitespaces": True}, "removes repeated spaces"),
        ({"byte_fallback": False}, "no token for each byte"),
        ({"treat_whitespace_as_suffix": True}, "spaces end its tokens"),
        ({"eos_id": -1}, "neither"),
    ],
)
def test_a_model_that_changes_or_loses_text_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    trained(tmp_path, **options)
    with pytest.raises(InputError, match=message) as error:
        from_huggingface(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    content = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (b"", b"\x00" * 50, b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", content[:1000], b"{}"):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(InputError):
            from_huggingface(tmp_path)
