"""A file of prompts: each row is in one batch, batches depend only on the file, and wrong lines are named."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from data import InputError
from data.labelled.prompts import MAX_ERRORS, PromptFile


class Letters:
    """One token per character, except ?, which is unknown."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if letter != "?"]

    def unknown(self, text: str) -> Counter[str]:
        return Counter(letter for letter in text if letter == "?")


@dataclass(frozen=True)
class Wish:
    group: str = "a"
    max_new_tokens: int = 5
    num_samples: int = 1


def read(fields):
    if "wrong" in fields:
        raise InputError(f"wrong={fields['wrong']} is wrong")
    return Wish(**{name: value for name, value in fields.items() if name in ("group", "max_new_tokens", "num_samples")})


def opened(path, content=None, **options):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = {"read": read, "tokenizer": Letters(), "context": 20, "batch_size": 4} | options
    return PromptFile(path, **options)


def random_file(seed):
    rng = random.Random(seed)
    lines = []
    for _ in range(rng.randint(1, 60)):
        record = {"prompt": rng.choice("aé☃🙂\u2028") * rng.randint(0, 30)}
        for name, values in (("group", "ab"), ("max_new_tokens", (5, 9)), ("num_samples", (1, 2, 3)), ("id", range(9))):
            if rng.random() < 0.3:
                record[name] = rng.choice(values)
        lines += [json.dumps(record, ensure_ascii=rng.random() < 0.5), *[" \t"] * (rng.random() < 0.2)]
    return rng.choice(["\n", "\r\n"]).join(lines) + "\n" * rng.randint(0, 2)


@pytest.mark.parametrize("seed", range(30))
def test_each_row_is_in_one_batch_with_rows_of_its_group(tmp_path, seed):
    content = random_file(seed)
    records = [json.loads(line) for line in re.split("\r?\n", content) if line.strip()]
    prompts = opened(tmp_path / "prompts.jsonl", content)
    batches = [prompts.batch(number) for number in range(len(prompts))]
    rows = [row for batch in batches for row in batch]
    expected = [(index, k) for index, record in enumerate(records) for k in range(record.get("num_samples", 1))]
    assert sorted((row.index, row.sample) for row in rows) == expected
    assert [expected[place] for place in prompts.order] == [(row.index, row.sample) for row in rows]
    assert [len(batch) for batch in batches] == prompts.sizes.tolist()
    for number, batch in enumerate(batches):
        assert len({read(row.fields).group for row in batch}) == 1
        assert len(batch) <= prompts.shape(number) <= 4
        keys = [
            (-read(row.fields).max_new_tokens, -min(20, len(row.text) or 1), row.index, row.sample) for row in batch
        ]
        assert keys == sorted(keys)
        for row in batch:
            assert {"prompt": row.text, **row.fields} == records[row.index]
    again = opened(tmp_path / "prompts.jsonl")
    assert [again.batch(number) for number in reversed(range(len(again)))] == batches[::-1]
    assert again.sha256 == prompts.sha256


def test_a_small_group_is_padded_to_a_power_of_two_and_others_to_a_full_batch(tmp_path):
    groups = "a" * 21 + "b" * 3 + "c"
    content = "".join(json.dumps({"prompt": "x", "group": group}) + "\n" for group in groups)
    prompts = opened(tmp_path / "prompts.jsonl", content, batch_size=12)
    assert prompts.sizes.tolist() == [12, 9, 3, 1]
    assert [prompts.shape(number) for number in range(len(prompts))] == [12, 12, 4, 1]


def test_a_text_file_has_one_prompt_per_line(tmp_path):
    prompts = opened(tmp_path / "prompts.txt", '\ufeff{"a": 1} \r\n\n  two\x0b\n', batch_size=1)
    assert [prompts.batch(number)[0].text for number in range(2)] == ['{"a": 1} ', "  two\x0b"]


def test_a_few_wrong_lines_are_reported_together(tmp_path):
    wrong = [
        b'{"prompt": "good"}', b"not json", b'{"prompt": 3}', b'{"text": "x"}', b'{"prompt": "x", "wrong": 7}', b"\xff",
        b'{"prompt": "x", "text": "mine"}',
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "prompts.jsonl", b"\n\n".join(wrong), reserved=("text",))
    assert len(caught.value.args) == MAX_ERRORS
    for problem, line, part in zip(
        caught.value.args, (3, 5, 7, 9, 11), ("not JSON", "'prompt' is 3", "no field 'prompt'", "wrong=7", "UTF-8"),
        strict=True,
    ):  # fmt: skip
        assert problem.startswith(f"{tmp_path / 'prompts.jsonl'}:{line}: ") and part in problem
    with pytest.raises(InputError, match=r"jsonl:1: field 'text' has the name of a result field"):
        opened(tmp_path / "prompts.jsonl", wrong[-1], reserved=("text",))
    with pytest.raises(InputError, match="no field 'prompt'"):
        opened(tmp_path / "prompts.jsonl", wrong[3], reserved=("text",))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_prompts_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="no prompts"):
        opened(tmp_path / "prompts.jsonl", content)


def test_null_means_that_a_field_is_absent(tmp_path):
    prompts = opened(tmp_path / "prompts.jsonl", '{"prompt": "a", "text": null, "id": null}', reserved=("text",))
    assert prompts.batch(0)[0].fields == {"text": None, "id": None}
    with pytest.raises(InputError, match=r"jsonl:1: 'prompt' is null \(fields: prompt, id\); add it"):
        opened(tmp_path / "prompts.jsonl", '{"prompt": null, "id": 3}')
    with pytest.raises(InputError, match=r"jsonl:1: 'prompt' is true, not a string"):
        opened(tmp_path / "prompts.jsonl", '{"prompt": true}')


def test_a_prompt_that_overflows_the_context_is_refused_if_asked(tmp_path):
    content = "\n".join(json.dumps({"prompt": "x" * length}) for length in (16, 17, 2))
    opened(tmp_path / "prompts.jsonl", content)
    with pytest.raises(InputError, match="jsonl:2: 17 tokens and max_new_tokens=5 exceed the context of 20"):
        opened(tmp_path / "prompts.jsonl", refuse_overflow=True)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, part in (("missing", "No such file"), (".", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(InputError, match=part):
            opened(tmp_path / name)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    prompts = opened(tmp_path / "prompts.jsonl", '{"prompt": "a"}\n')
    prompts.batch(0)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "b"}\n')
    with pytest.raises(InputError, match="changed"):
        prompts.batch(0)


def test_unknown_characters_are_counted_and_their_first_line_is_named(tmp_path):
    known, unknown = opened(tmp_path / "a.txt", "one\ntwo\n"), opened(tmp_path / "b.txt", "one\n\ntwo?\nthree??\n")
    assert (known.unknown, known.unknown_line) == ({}, None)
    assert (unknown.unknown, unknown.unknown_line) == ({"?": 3}, 3)


def test_few_bytes_per_prompt_stay_in_memory(tmp_path):
    content = "".join(json.dumps({"prompt": "x" * 1000}) + "\n" for _ in range(300))
    prompts = opened(tmp_path / "prompts.jsonl", content)
    held = sum(len(value) * value.itemsize for value in vars(prompts).values() if hasattr(value, "itemsize"))
    assert 0 < held < 300 * 40
    assert isinstance(prompts.order, np.ndarray)


def test_a_compressed_file_is_named_as_one(tmp_path):
    with pytest.raises(InputError, match=r"prompts\.jsonl\.gz is compressed; decompress it"):
        opened(tmp_path / "prompts.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n'))


def test_a_file_of_another_format_is_answered_with_the_formats_that_are_read(tmp_path):
    with pytest.raises(InputError) as error:
        opened(tmp_path / "notes.md", "# Notes\n\nSome prose.\n")
    formats = "prompts can be JSON Lines (.jsonl), CSV (.csv), TSV (.tsv) or lines of text (.txt)"
    assert error.value.args == (f"{tmp_path / 'notes.md'} is not a JSON Lines file; {formats}",)
