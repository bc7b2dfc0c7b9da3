"""A tokenizer read from a folder of Hugging Face's gives the ids of the `tokenizers` library, or is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from data import InputError
from data.exchange.byte_level.patterns import CUTS
from data.exchange.imported import Imported
from data.exchange.mixed_text import fuzz_strings, mixed_text
from data.exchange.tokenizer_folder import to_huggingface
from data.exchange.tokenizer_json import from_huggingface
from data.labelled.rows import encode_segments
from data.labelled.templates import CHAT_TEMPLATES, Segment
from data.tokenizers.build import END, TokenizerConfig, build, load

tokenizers = pytest.importorskip("tokenizers")
SPECIAL = [END, "<|im_start|>", "<|im_end|>"]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
TEXT = mixed_text(60_000)


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def in_order(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


CUTTERS = {
    "ByteLevel": LEVEL | {"use_regex": True},
    "digits": in_order(DIGITS, LEVEL | {"use_regex": True}),
    **{name: in_order(*map(split, steps), LEVEL) for name, cut in CUTS.items() for steps in cut.steps},
    **{f"{name}, ours": in_order(split(cut.expression), LEVEL) for name, cut in CUTS.items()},
    "exported": in_order(split(CUTS["qwen2"].expression + r"|[\s\S]"), LEVEL),
}


def trained(cutter: dict[str, Any], *, all_bytes: bool = True) -> Any:
    """A tokenizer that the other library trains: special tokens first, then bytes, then merges."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    empty = json.loads(theirs.to_str()) | {"pre_tokenizer": cutter, "decoder": LEVEL}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(empty))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if all_bytes else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([TEXT if all_bytes else TEXT.replace("\x04", "")], trainer)
    return theirs


def folder_of(theirs: Any, folder: Path, **config: Any) -> Path:
    theirs.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", **config}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(trained(CUTTERS["ByteLevel"]), tmp_path_factory.mktemp("base"))


def changed(base: Path, folder: Path, **values: Any) -> Imported:
    """Reads the folder with other values in tokenizer.json; "model.vocab" is a place in it."""
    content = json.loads((base / "tokenizer.json").read_text())
    for place, value in values.items():
        *outer, key = place.split("__")
        target = content
        for name in outer:
            target = target[name]
        target[key] = value(target[key]) if callable(value) else value
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text())
    return from_huggingface(folder)


@pytest.mark.parametrize("name", CUTTERS)
def test_ids_are_equal_for_each_way_to_cut_a_text(name: str, tmp_path: Path) -> None:
    theirs = trained(CUTTERS[name])
    read = from_huggingface(folder_of(theirs, tmp_path))
    theirs.encode_special_tokens = True  # their names in a text are text
    for text in (TEXT, *fuzz_strings(300, 1)):
        assert read.tokenizer.encode(text) == theirs.encode(text).ids, ascii(text[:100])
    assert not read.notes and read.tokenizer.vocab_size == 600
    assert read.tokenizer.special_tokens == {name: number for number, name in enumerate(SPECIAL)}


def test_special_text_and_a_saved_tokenizer_give_the_same_ids(base: Path, tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer = from_huggingface(base).tokenizer
    tokenizer.save(tmp_path)
    text = mixed_text(20_000, SPECIAL)
    for ours in (tokenizer, load(tmp_path)):
        [[ids]] = encode_segments([[Segment(text, special=True)]], ours)
        assert ids.tolist() == theirs.encode(text).ids
    assert load(tmp_path).fingerprint == tokenizer.fingerprint


def test_bytes_without_a_token_are_left_out_as_there(tmp_path: Path) -> None:
    theirs = trained(CUTTERS["ByteLevel"], all_bytes=False)
    read = from_huggingface(folder_of(theirs, tmp_path))
    theirs.encode_special_tokens = True
    for text in ("a\x04b", "\x04", "x \x04 y\x04\x04 z", TEXT, *fuzz_strings(300, 2)):
        assert read.tokenizer.encode(text) == theirs.encode(text).ids, ascii(text[:100])
    assert read.tokenizer.unknown("a\x04\x04") == {"\x04": 2} and "byte values have no token" in read.notes[0]
    read.tokenizer.save(tmp_path / "saved")
    assert load(tmp_path / "saved").encode("a\x04b") == theirs.encode("ab").ids


def test_another_end_token_is_called_endoftext_and_written_back(base: Path, tmp_path: Path) -> None:
    rename = {"</s>" if name == END else name: number for number, name in enumerate(SPECIAL)}
    content = (base / "tokenizer.json").read_text().replace(END, "</s>")
    (tmp_path / "tokenizer.json").write_text(content)
    jinja = CHAT_TEMPLATES["zephyr"].jinja().replace(END, "</s>")
    config = {"eos_token": {"content": "</s>"}, "chat_template": jinja}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = from_huggingface(tmp_path)
    assert read.tokenizer.end_id == 0 and read.tokenizer.end_name == "</s>" and "is called" in read.notes[0]
    assert read.chat == CHAT_TEMPLATES["zephyr"]
    read.tokenizer.save(tmp_path / "ours")
    again = tmp_path / "again"
    again.mkdir()
    to_huggingface(again, load(tmp_path / "ours"), context=64, chat=read.chat)
    written = json.loads((again / "tokenizer.json").read_text())
    assert {token["content"]: token["id"] for token in written["added_tokens"]} == rename
    assert END not in (again / "tokenizer_config.json").read_text()
    assert from_huggingface(again).tokenizer.fingerprint == read.tokenizer.fingerprint


def test_a_start_token_comes_from_the_post_processor_and_is_written_back(base: Path, tmp_path: Path) -> None:
    processor = tokenizers.processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    theirs = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    theirs.post_processor = processor
    read = from_huggingface(folder_of(theirs, tmp_path))
    assert read.tokenizer.start_id == 1 == theirs.encode("ab").ids[0]
    read.tokenizer.save(tmp_path / "ours")
    assert load(tmp_path / "ours").start_id == 1
    to_huggingface(tmp_path, read.tokenizer, context=64)
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("ab").ids == [1, *read.tokenizer.encode("ab")]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["bos_token"] == "<|im_start|>"


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "nanochat", "arcee"])
def test_auto_tokenizer_gives_our_ids_beside_every_model(model_type: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = TokenizerConfig(vocab_size=420, pattern="gpt4", special_tokens=["<|user|>", "<|assistant|>", "<|system|>"])
    tokenizer = build(config, [TEXT])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    chat = CHAT_TEMPLATES["zephyr"]
    to_huggingface(tmp_path, tokenizer, context=100_000, chat=chat)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT[:20_000], *fuzz_strings(50, 4)):
        assert theirs(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    messages = [{"role": "user", "content": "Hi"}]
    [parts] = encode_segments([chat.prompt(messages)], tokenizer)
    expected = [token for ids in parts for token in ids.tolist()]
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected
    assert (theirs.eos_token_id, theirs.bos_token_id, len(theirs)) == (tokenizer.end_id, tokenizer.end_id, 420)
    read = from_huggingface(tmp_path)
    assert read.chat == chat and read.tokenizer.ranks == tokenizer.ranks  # type: ignore[attr-defined]


def test_merges_whose_ids_ranks_cannot_give_are_refused(base: Path, tmp_path: Path) -> None:
    def later(merges: list[list[str]]) -> list[list[str]]:
        return [*merges[50:], *merges[:50]]  # frequent pairs last

    with pytest.raises(InputError, match="merges cannot be written as ranks"):
        changed(base, tmp_path, model__merges=later)


def extra(**values: Any) -> Any:
    entry = {"id": 600, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False, "special": True}
    return lambda tokens: [*tokens, entry | values]


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "unknown expression": ({"pre_tokenizer": in_order(split(r"(a+)+$"), LEVEL)}, "not one of the known expressions"),
    "a known and another": ({"pre_tokenizer": in_order(split("x+"), DIGITS, LEVEL)}, "known expressions"),
    "no bytes": ({"pre_tokenizer": split(CUTS["gpt2"].expression)}, "pre-tokenizer"),
    "no cut": ({"pre_tokenizer": None}, "pre-tokenizer"),
    "prefix space": ({"pre_tokenizer": LEVEL | {"use_regex": True, "add_prefix_space": True}}, "pre-tokenizer"),
    "normalizer": ({"normalizer": {"type": "NFC"}}, "changes the text"),
    "unigram": ({"model__type": "Unigram"}, "only byte-level BPE"),
    "byte fallback": ({"model__byte_fallback": True}, "byte fallback"),
    "dropout": ({"model__dropout": 0.1}, "dropout"),
    "suffix": ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    "two ids": ({"model__vocab": lambda vocab: vocab | {"t": vocab["e"]}}, "have the same id"),
    "negative id": ({"model__vocab": lambda vocab: vocab | {"t": -1}}, "no token id"),
    "text as id": ({"model__vocab": lambda vocab: vocab | {"t": "5"}}, "no token id"),
    "huge id": ({"model__vocab": lambda vocab: vocab | {"t": 10**12}}, "no token id"),
    "gap": ({"model__vocab": lambda vocab: vocab | {"t": 90_000}}, "most ids are not used"),
    "long token": ({"model__vocab": lambda vocab: vocab | {"t" * 5_000: 600}}, "longer than"),
    "unknown part": ({"model__merges": lambda merges: [*merges, ["zzzz", "e"]]}, "which is no token"),
    "three parts": ({"model__merges": lambda merges: [*merges, ["a", "b", "c"]]}, "damaged"),
    "merge twice": ({"model__merges": lambda merges: [*merges, merges[0]]}, "occurs twice"),
    "no vocabulary": ({"model__vocab": []}, "damaged"),
    "no tokens": ({"model__vocab": {}, "model__merges": [], "added_tokens": []}, "no vocabulary"),
    "special id": ({"added_tokens": extra(id=7)}, "have the same id"),
    "special name": ({"added_tokens": extra(content=END, id=0)}, "occurs twice"),
    "ordinary text": ({"added_tokens": extra(content="   ", special=False)}, "found in any text"),
    "neighbours": ({"added_tokens": extra(lstrip=True)}, "takes its neighbours"),
    "end after text": (
        {"post_processor": {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}},
        "adds more than a token",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_damaged_or_not_known_is_refused_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    values, message = HOSTILE[name]
    begun = time.monotonic()
    with pytest.raises(InputError, match=message) as error:
        changed(base, tmp_path, **values)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and time.monotonic() - begun < 20


def test_files_that_are_no_json_or_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        from_huggingface(tmp_path)
    for content in ("{", "[]", "[" * 100_000, '"\\ud800"'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match="JSON"):
            from_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/dev/null")  # /dev/zero has no end
    with pytest.raises(InputError, match="is not a file"):
        from_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    build(TokenizerConfig(kind="byte"), []).save(tmp_path)
    with pytest.raises(InputError, match="tokenizer of this program"):
        from_huggingface(tmp_path)


def test_a_marker_that_is_found_in_every_text_becomes_special_with_a_note(base: Path, tmp_path: Path) -> None:
    read = changed(base, tmp_path, added_tokens=extra(content="<tool_call>", special=False))
    assert read.tokenizer.special_tokens["<tool_call>"] == 600 and "<tool_call>" in read.notes[0]
    read.check_size(601)
    with pytest.raises(InputError, match=r"token id 600, but the model's vocab_size is 600"):
        read.check_size(600)


def test_unused_ids_take_no_name_from_a_token(base: Path, tmp_path: Path) -> None:
    filled = changed(base, tmp_path, added_tokens=extra(content="<|unused_601|>")).filled(603).tokenizer
    assert filled.special_tokens["<|unused_601|>"] == 600 and filled.vocab_size == 603


def test_a_token_that_no_text_gives_is_kept_as_a_special_token(base: Path, tmp_path: Path) -> None:
    read = changed(base, tmp_path, model__vocab=lambda vocab: vocab | {"Ġnever": 600})
    assert read.tokenizer.decode([600]) == " never" and 600 not in read.tokenizer.encode("a never")
    assert "cannot come out of a text" in read.notes[0]
