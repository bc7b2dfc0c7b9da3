"""Labelled files: every format reads as the same examples; a broken file is refused in one line with its place."""

from __future__ import annotations

import gzip
import json

import pytest

from data import InputError
from data.labelled.examples import Example, write_examples
from data.labelled.formats import read_examples
from data.labelled.templates import CHAT_TEMPLATES, Task

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def written(path, content: str | bytes):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def key(example: Example) -> tuple:
    return example.prompt, example.completion, example.label, example.group, example.weight


def test_all_formats_read_as_the_same_examples(tmp_path):
    rows = [("good, very", "pos", "a"), ('say "no"\nor so', "neg", "b"), ("naïve 😀", "pos", "a")]
    records = [{"text": text, "label": label, "group": group} for text, label, group in rows]
    quoted = [[f'"{field.replace(chr(34), chr(34) * 2)}"' for field in row] for row in rows]
    table = [["text", "label", "group"], *quoted]
    files = [
        written(tmp_path / "e.jsonl", "\n".join(json.dumps(record) for record in records)),
        written(tmp_path / "e.csv", "".join(",".join(row) + "\n" for row in table)),
        written(tmp_path / "semicolons.csv", "".join(";".join(row) + "\r\n" for row in table)),
        written(tmp_path / "e.tsv", "\ufeff" + "".join("\t".join(row) + "\n" for row in table)),
    ]
    expected = [(f"{text}\n\nLabel:", f" {label}", label, group, 1.0) for text, label, group in rows]
    for path in files:
        examples = read_examples(path)
        assert [key(example) for example in examples] == expected, path
        write_examples(examples, tmp_path / "again.jsonl")
        assert [key(example) for example in read_examples(tmp_path / "again.jsonl")] == expected
    assert [example.place for example in read_examples(files[1])] == [f"{files[1]}:{line}" for line in (2, 3, 5)]


def test_fields_and_templates_can_be_named(tmp_path):
    path = written(tmp_path / "e.csv", "tweet,mood,weight\n so tired ,sad ,0.5\nyay,happy,\n")
    task = Task(prompt="Tweet:{text}\nMood:", completion=" {label}.")
    found = read_examples(path, task=task, text_field="tweet", label_field="mood")
    assert [key(example) for example in found] == [
        ("Tweet: so tired \nMood:", " sad.", "sad", None, 0.5),
        ("Tweet:yay\nMood:", " happy.", "happy", None, 1.0),
    ]


def test_a_chat_is_its_template_around_the_messages(tmp_path):
    path = written(tmp_path / "c.jsonl", json.dumps({"messages": [*TURNS, *TURNS], "weight": 2}))
    [example] = read_examples(path)
    text = "User:\nHi\n\nAssistant:\nHello<|endoftext|>User:\nHi\n\nAssistant:\nHello<|endoftext|>"
    assert "".join(segment.text for segment in example.chat) == text and example.weight == 2
    assert example.prompt + example.completion + "<|endoftext|>" == text
    assert [s.text for s in example.chat if s.learned] == ["Hello", "<|endoftext|>"] * 2
    write_examples([example], tmp_path / "again.jsonl")
    [again] = read_examples(tmp_path / "again.jsonl", task=Task(chat=CHAT_TEMPLATES["chatml"]))
    assert again.chat[0].text == "<|im_start|>user\n"


GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("e.jsonl", "", "no examples; write one per line"),
        ("e.csv", "text,label\n", "no examples"),
        ("e.jsonl", GOOD + "{not json\n", r"e\.jsonl:2: not JSON"),
        ("e.jsonl", GOOD + '["a", "b"]\n', r"e\.jsonl:2: a JSON list"),
        ("e.jsonl", GOOD + '{"prompt": "a"}\n', r"e\.jsonl:2: fields 'prompt'; an example is"),
        ("e.jsonl", '{"text": "a"}\n', r"e\.jsonl:1: fields 'text'; .*label_field="),
        ("e.csv", "sentence,sentiment\na,b\n", r"e\.csv:2: fields 'sentence', 'sentiment'; .*text_field="),
        ("e.jsonl", GOOD + '{"text": "a", "label": "b"}\n', r"e\.jsonl:2: fields text, label, but .*:1 has prompt"),
        ("e.jsonl", '{"prompt": "a", "completion": null}\n', r"e\.jsonl:1: 'completion' is null"),
        ("e.jsonl", '{"text": "a", "label": 1}\n', r"e\.jsonl:1: 'label' is 1, not a string"),
        ("e.jsonl", '{"prompt": ["a"], "completion": "b"}\n', r"e\.jsonl:1: 'prompt' is \[\"a\"\]"),
        ("e.jsonl", '{"prompt": "a", "completion": " "}\n', r"e\.jsonl:1: 'completion' is empty"),
        ("e.csv", "text,label\na,\n", r"e\.csv:2: 'label' is empty"),
        ("e.csv", "text,label\na,b,c\n", r"e\.csv:2: 3 columns, but the header has 2"),
        ("e.csv", 'text,label\n"open,b\n', r"e\.csv:\d: unexpected end of data; quote"),
        ("e.csv", "text,text\na,b\n", r"e\.csv:1: two columns have the same name"),
        ("e.csv", b"text,label\nna\xefve,b\n", r"e\.csv:2: byte 0xef is not UTF-8; convert it"),
        ("e.jsonl", b'{"text": "na\xefve", "label": "b"}\n', r"e\.jsonl:1: byte 0xef is not UTF-8"),
        ("e.jsonl", '{"text": "a", "label": "b", "weight": -1}\n', r"e\.jsonl:1: 'weight' is -1, not a number"),
        ("e.csv", "text,label,weight\na,b,heavy\n", r"e\.csv:2: 'weight' is \"heavy\""),
        ("e.jsonl", '{"text": "a", "label": "b", "group": 3}\n', r"e\.jsonl:1: 'group' is 3"),
        ("e.jsonl", '{"messages": "hello"}\n', r"e\.jsonl:1: 'messages' is \"hello\""),
        ("e.jsonl", '{"messages": []}\n', r"e\.jsonl:1: 'messages' is \[\]"),
        ("e.jsonl", json.dumps({"messages": TURNS[:1]}), "the last message is the user's; the assistant's answer"),
        ("e.jsonl", json.dumps({"messages": TURNS[::-1]}), r"message 1: role 'assistant', but system or user"),
        ("e.jsonl", json.dumps({"messages": [TURNS[0], *TURNS]}), "message 2: role 'user', but assistant must"),
        (
            "e.jsonl",
            json.dumps({"messages": [{"role": "system", "content": "x"}] * 2 + TURNS}),
            "message 2: role 'system', but user must come here: at most one system message",
        ),
        ("e.jsonl", json.dumps({"messages": [{"role": "tool", "content": "x"}, *TURNS]}), "role 'tool' is not one of"),
        (
            "e.jsonl",
            json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": None}]}),
            "message 2: 'content' is null",
        ),
        ("e.jsonl", json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": " "}]}), "the answer is empty"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_examples(written(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.csv", "none.jsonl"):
        with pytest.raises(InputError, match=rf"{name}.*No such file"):
            read_examples(tmp_path / name)


def test_null_group_and_weight_are_absent(tmp_path):
    path = written(tmp_path / "e.jsonl", '{"text": "a", "label": "b", "group": null, "weight": null}\n')
    [example] = read_examples(path)
    assert example.group is None and example.weight == 1.0


def test_a_table_may_have_long_texts(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(f'text,label\n"{"word, " * 50_000}",a\nshort,b\n')
    assert [len(example.record["text"]) for example in read_examples(path)] == [300_000, 5]


def test_a_compressed_table_is_one(tmp_path):
    (tmp_path / "e.CSV.gz").write_bytes(gzip.compress(b"text,label\na,b\n"))
    assert [example.label for example in read_examples(tmp_path / "e.CSV.gz")] == ["b"]


@pytest.mark.parametrize(
    "name, content", [("notes.md", "# Notes\n"), ("e.json", '[{"text": "a"}]'), ("e.xlsx", b"PK\3\4")]
)
def test_a_file_of_another_format_is_answered_with_the_formats_that_are_read(tmp_path, name, content):
    path = written(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        read_examples(path)
    formats = "examples can be JSON Lines (.jsonl), CSV (.csv) or TSV (.tsv)"
    assert str(error.value) == f"{path} is not a JSON Lines file; {formats}"


def test_json_lines_may_have_any_name(tmp_path):
    path = written(tmp_path / "examples", '\ufeff\n\n {"text": "a", "label": "b"}\n')
    assert len(read_examples(path)) == 1
