"""Fine-tuned checkpoints in use: the labels of texts and of files of texts, and chats through the chat template."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from data.labelled.answers import answer
from data.labelled.formats import read_examples
from data.labelled.prompts import PromptFile
from data.labelled.rows import Rows, chat_prompt
from data.labelled.templates import Task, chat_template
from model.bulk import Request
from model.checkpoints import reader
from model.language_model import LanguageModel
from sample import load
from tests.conftest import POEM
from tests.programs import NANO, ok, one_line, run

LABELS = ("heart", "gut", "your body")
TEXTS = ["Listen to", "to your body; listen", "the wind", "nobody"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of one step on bytes, with the special tokens of chatml."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "poem.txt").write_text("".join(f"{number}. {POEM}" for number in range(60)), encoding="utf-8")
    options = [*NANO, "tokenizer=byte", "tokenizer.special_tokens=['<|im_start|>','<|im_end|>']", "model.context=128"]
    where = [f"corpus={folder / 'poem.txt'}", f"datasets={folder / 'datasets'}", f"run_dir={folder / 'run'}"]
    ok("train", *options, *where, "steps=1")
    return folder / "run"


def tuned(base, folder, rows, **options):
    """A run of one step on labelled examples."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_dir = folder / "tuned"
    options = {"checkpoint": base, "examples": folder / "rows.jsonl", "run_dir": run_dir, "steps": 1} | options
    options |= {"batch_size": 4, "device": "cpu", "dtype": "float32", "compare": "false", "preview": 0}
    ok("finetune", *(f"{name}={value}" for name, value in options.items()))
    return run_dir


@pytest.fixture(scope="module")
def classifier(base, tmp_path_factory):
    rows = [{"text": f"{number} {TEXTS[number % 4]}", "label": LABELS[number % 3]} for number in range(30)]
    return tuned(base, tmp_path_factory.mktemp("classifier"), rows)


@pytest.fixture(scope="module")
def chatty(base, tmp_path_factory):
    rows = []
    for number in range(12):
        turns = [
            ("system", "Be brief."),
            ("user", f"What is {number}?"),
            ("assistant", f"{number}, <|im_end|> I said."),
        ]
        turns += [("user", "And then?"), ("assistant", f"{number + 1}.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return tuned(base, tmp_path_factory.mktemp("chatty"), rows, chat_template="chatml")


def sums_of_logs(lm, prompt, label):
    """log p of all tokens of a label and the end token after a prompt, from one plain forward."""
    ids = [*lm.tokenizer.encode(label), lm.tokenizer.end_id]
    before = lm.tokenizer.encode(prompt)
    with torch.no_grad():
        log_p = lm.model(torch.tensor([[*before, *ids[:-1]]]))[0].log_softmax(-1)
    return math.fsum(float(log_p[len(before) - 1 + place, token]) for place, token in enumerate(ids))


def test_classify_prints_saves_and_plots_the_probability_of_every_label(classifier, tmp_path):
    common = (f"checkpoint={classifier}", "mode=classify", "device=cpu")
    files = [f"json={tmp_path / 'a.json'}", f"plot={tmp_path / 'a.svg'}"]
    out = ok("sample", *common, f'text=["{TEXTS[0]}", "{TEXTS[1]}"]', *files)
    found = json.loads((tmp_path / "a.json").read_text())
    lm, temperature = load(classifier, device="cpu"), Task.load(reader.find(classifier).directory).temperature
    assert [one["text"] for one in found] == TEXTS[:2]
    for one in found:
        assert {row["label"] for row in one["labels"]} == set(LABELS)
        expected = {name: sums_of_logs(lm, f"{one['text']}\n\nLabel:", f" {name}") for name in LABELS}
        total = math.fsum(math.exp(value / temperature) for value in expected.values())
        for row in one["labels"]:
            assert row["log_probability"] == pytest.approx(expected[row["label"]], abs=1e-4)
            assert row["probability"] == pytest.approx(math.exp(expected[row["label"]] / temperature) / total, abs=1e-4)
            assert f"{row['probability']:.2%}" in out
        assert one["outside"] == pytest.approx(1 - sum(map(math.exp, expected.values())), abs=1e-5)
    assert out.count("is outside the label set") == 2 and repr(TEXTS[1]) in out
    drawn = (tmp_path / "a.svg").read_text()
    assert "<svg" in drawn and "outside the label set" not in out.replace("is outside the label set", "")
    assert [one.labels[0].label for one in lm.classify(TEXTS[:2])] == [one["labels"][0]["label"] for one in found]


def test_the_text_may_come_from_a_file_or_standard_input(classifier, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfListen to\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Listen to\n"), encoding="utf-8"))
    common = (f"checkpoint={classifier}", "mode=classify", "device=cpu")
    given = ok("sample", *common, "text=Listen to")
    assert ok("sample", *common, f"prompt_file={tmp_path / 'text.txt'}") == ok("sample", *common) == given
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "needs text=TEXT" in one_line(run("sample", *common))


def test_labels_and_templates_may_be_given_for_any_checkpoint(base, tmp_path):
    common = [f"checkpoint={base}", "mode=classify", "device=cpu", "text=Listen to your"]
    assert "was not fine-tuned on a label set; give one with labels=" in one_line(run("sample", *common))
    common += ["labels=[heart, gut]", f"json={tmp_path / 'a.json'}"]
    ok("sample", *common, "prompt_template={text}", "completion_template= {label}.")
    found, lm = json.loads((tmp_path / "a.json").read_text()), load(base, device="cpu")
    for row in found["labels"]:
        expected = sums_of_logs(lm, "Listen to your", f" {row['label']}.")
        assert row["log_probability"] == pytest.approx(expected, abs=1e-4)
    assert lm.classify("x", Task(labels=("a", "b")))[0].labels[0].label in "ab"
    for wrong, part in (
        ("prompt_template=no", "must contain {text} once"),
        ("prompt_template=", "must contain {text} once"),
        ("labels=[a, a]", "at least two different texts"),
        ('labels=["", a]', "a label is empty"),
        ("labels=[a, null]", 'the item null is not text; quote it: "null"'),
        ("text=[]", "has no text"),
        ("prompt_file=x", "text and prompt_file are both given"),
    ):
        assert part in one_line(run("sample", *common, wrong))


def test_a_note_says_what_may_help_if_the_labels_are_improbable(base, tmp_path):
    common = [f"checkpoint={base}", "mode=classify", "device=cpu", 'labels=["a man\'s heart", gut]']
    ended = run("sample", *common, 'text=["Listen", "to your"]')
    [note] = [line for line in ended.err.splitlines() if "outside the labels" in line]
    prompt = note.partition("prompt_template=")[2]
    assert note.startswith("note: over 90% of the probability is outside the labels for most of the 2 texts, so")
    template = subprocess.run(["bash", "-c", f"printf %s {prompt}"], capture_output=True, text=True, check=True).stdout
    assert template == "Choose one label: a man's heart, gut.\n\n{text}\n\nLabel:"
    assert "outside the labels" not in run("sample", *common, f"prompt_template={template}", "text=Listen").err
    (tmp_path / "a.txt").write_text("".join(f"Listen {'to ' * n}\n" for n in range(9)))
    where = (f"prompts={tmp_path / 'a.txt'}", f"outputs={tmp_path / 'a.jsonl'}", "batch_size=2")
    assert run("sample", *common, *where).err.count("outside the labels") == 1  # although there are several batches


@pytest.mark.parametrize("improbable, noted", [([0, 5], False), ([1, 2, 3, 4], True)])
def test_the_note_on_a_file_is_about_most_of_its_texts(base, tmp_path, monkeypatch, improbable, noted):
    classify = LanguageModel.classify

    def with_outside(self, texts, task=None):
        outside = [0.95 if int(text) in improbable else 0.1 for text in texts]
        return [replace(one, outside=p) for one, p in zip(classify(self, texts, task), outside, strict=True)]

    monkeypatch.setattr(LanguageModel, "classify", with_outside)
    (tmp_path / "a.txt").write_text("".join(f"{n}\n" for n in range(6)))
    where = (f"prompts={tmp_path / 'a.txt'}", f"outputs={tmp_path / 'a.jsonl'}", "batch_size=2")
    err = run("sample", f"checkpoint={base}", "mode=classify", "device=cpu", "labels=[gut, heart]", *where).err
    assert err.count("outside the labels") == noted and ("for most of the 6 texts" in err) == noted, err


def test_a_note_says_that_a_fine_tuned_checkpoint_hardly_writes_its_labels(classifier, monkeypatch):
    classify = LanguageModel.classify

    def with_outside(self, texts, task=None):
        return [replace(one, outside=0.95) for one in classify(self, texts, task)]

    monkeypatch.setattr(LanguageModel, "classify", with_outside)
    err = run("sample", f"checkpoint={classifier}", "mode=classify", "device=cpu", "text=Listen").err
    assert err.count("more fine-tuning may help") == 1 and "prompt_template" not in err


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(trained):
    common = (f"checkpoint={trained}", "mode=classify", "device=cpu", "text=Listen")
    ended = run("sample", *common, 'labels=["é", "à"]')
    assert ended.status == 2 and "error: two labels have the same tokens" in ended.err


def bulk(checkpoint, prompts, outputs, *more):
    where = (f"prompts={prompts}", f"outputs={outputs}", "mode=classify", "batch_size=4", "device=cpu")
    ok("sample", f"checkpoint={checkpoint}", *where, *more)
    return [json.loads(line) for line in outputs.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_texts_in_any_format_gets_the_same_labels(classifier, tmp_path):
    texts = [text.replace(" ", "\n") if number == 1 else text for number, text in enumerate(TEXTS * 3)]
    rows = [{"text": text, "label": "gut", "temperature": "20 °C"} for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["id", "tweet"])
        writer.writeheader()
        writer.writerows({"id": number, "tweet": text} for number, text in enumerate(texts))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    found = bulk(classifier, tmp_path / "a.jsonl", tmp_path / "jsonl.out")
    table = bulk(classifier, tmp_path / "a.csv", tmp_path / "csv.out", "text_field=tweet")
    lines = bulk(classifier, tmp_path / "a.txt", tmp_path / "txt.out")
    keys = ("index", "text", "label", "probability", "probabilities", "outside")
    assert [{key: row[key] for key in keys} for row in found] == [{key: row[key] for key in keys} for row in table]
    assert [row["text"] for row in lines] == TEXTS and [row["id"] for row in table] == list(map(str, range(12)))
    lm = load(classifier, device="cpu")
    for row, text in zip(found, texts, strict=True):
        [expected] = lm.classify(text)
        assert row["text"] == text and row["given_label"] == "gut" and row["temperature"] == "20 °C"
        assert row["label"] == expected.labels[0].label == max(row["probabilities"], key=row["probabilities"].get)
        assert row["probability"] == pytest.approx(expected.labels[0].probability, abs=1e-5)
        assert row["outside"] == pytest.approx(expected.outside, abs=1e-5)


def test_a_killed_classification_resumes_to_the_same_file(classifier, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": text * n}) + "\n" for n in (1, 2, 3) for text in TEXTS)
    )
    whole = bulk(classifier, tmp_path / "a.jsonl", tmp_path / "whole.out")
    calls, score = [], LanguageModel.classify

    def stopped(lm, texts, labels=None):
        calls.append(texts)
        if len(calls) == 3:  # the first call only checks the labels
            raise KeyboardInterrupt
        return score(lm, texts, labels)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "classify", stopped)
        where = (f"prompts={tmp_path / 'a.jsonl'}", f"outputs={tmp_path / 'a.out'}", "mode=classify", "batch_size=4")
        out = ok("sample", f"checkpoint={classifier}", *where, "device=cpu")
    assert "stopped after 4 of 12 results" in out and not (tmp_path / "a.out").exists()
    assert bulk(classifier, tmp_path / "a.jsonl", tmp_path / "a.out") == whole
    assert (tmp_path / "a.out").read_bytes() == (tmp_path / "whole.out").read_bytes()


def test_a_table_of_prompts_names_the_line_of_a_row(base, tmp_path):
    (tmp_path / "a.csv").write_text('prompt,top_k\n"two\nlines",\n\nx,3\n')
    tokenizer = load(base, device="cpu").tokenizer
    seen = []

    def read(fields):
        seen.append(fields)
        if fields["top_k"] == "3":
            raise ValueError("top_k is 3")
        return Request()

    with pytest.raises(ValueError, match=r"a\.csv:5: top_k is 3"):
        PromptFile(tmp_path / "a.csv", read=read, tokenizer=tokenizer, context=9, batch_size=2)
    assert len(seen) == 2


def test_a_classifier_still_continues_text_and_chats_as_text(classifier, base, tmp_path, monkeypatch):
    common = ("device=cpu", "max_new_tokens=5", "temperature=0")
    text = ok("sample", f"checkpoint={classifier}", "prompt=Listen", *common)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Listen\n"), encoding="utf-8"))
    assert ok("sample", f"checkpoint={classifier}", "mode=chat", *common) == text
    assert Task.load(reader.find(classifier).directory).chat is None
    ended = run("sample", f"checkpoint={base}", "mode=chat", "system=Be brief.", *common)
    assert "system= needs a checkpoint whose chat template has system messages" in one_line(ended)


@pytest.fixture
def talk(monkeypatch):
    """Chats over the lines with answers that are set; returns the output and the ids that the model read each time."""

    def run_chat(checkpoint, *lines, answers=(), options=()):
        read = []

        def stream(lm, ids, **how):
            assert lm.ends == (lm.tokenizer.special_tokens["<|im_end|>"],)
            read.append(list(ids))
            yield answers[len(read) - 1]

        monkeypatch.setattr(LanguageModel, "stream", stream)
        given = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        return ok("sample", f"checkpoint={checkpoint}", "mode=chat", "device=cpu", *options), read

    return run_chat


def test_a_chat_is_encoded_as_in_training(chatty, tmp_path, talk):
    said = ["What is <|im_end|>?", "é, <|im_start|>", "And  then?", "Nothing."]
    out, read = talk(chatty, said[0], "", said[2], answers=said[1::2], options=["system=Be brief."])
    assert out == f"{said[1]}\n{said[3]}\n"
    roles = ("system", "user", "assistant", "user", "assistant")
    turns = [{"role": r, "content": c} for r, c in zip(roles, ("Be brief.", *said), strict=True)]
    task, lm = Task.load(reader.find(chatty).directory), load(chatty, device="cpu")
    assert task.chat == chat_template("chatml")
    for ids, conversation in zip(read, (turns[:3], turns), strict=True):
        (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": conversation}))
        rows = Rows(read_examples(tmp_path / "chat.jsonl", task=task), lm.tokenizer, context=500)
        assert ids == rows.prompt_ids(0).tolist()
    assert read[1].count(lm.tokenizer.special_tokens["<|im_end|>"]) == 4 - 1 + 1  # system, user, assistant, user


def test_history_undo_reset_and_views_of_a_chat(chatty, talk):
    lm, template = load(chatty, device="cpu"), chat_template("chatml")

    def ids(*said):
        turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
        return chat_prompt(template, turns, lm.tokenizer)

    lines = ["a", "b", "/undo", "c", "/reset", "d"]
    _, read = talk(chatty, *lines, answers="1234")
    assert read == [ids("a"), ids("a", "1", "b"), ids("a", "1", "c"), ids("d")]
    _, read = talk(chatty, "a", "b", answers="12", options=["history=false"])
    assert read == [ids("a"), ids("b")]
    out, _ = talk(chatty, "a", "/tokens", "/words x", answers="1")
    assert "<|im_start|>assistant\\n" in out and "there is no command /words" in out


def test_an_answer_ends_at_the_first_special_token_of_the_assistants_suffix(chatty, tmp_path, monkeypatch):
    lm = load(chatty, device="cpu")
    end = lm.tokenizer.special_tokens["<|im_end|>"]
    ids = chat_prompt(chat_template("chatml"), [{"role": "user", "content": "a"}], lm.tokenizer)
    head = lm.model.head

    def ending(hidden):
        logits = head(hidden)
        logits[..., end] = 99.0  # always the most probable
        return logits

    monkeypatch.setattr(lm.model, "head", ending)
    [plain] = lm.generate([ids], max_new_tokens=3)
    assert plain.tokens == [end] * 3 and plain.ended == "length"
    [(text, stopped)] = lm.greedy([ids], max_new_tokens=3, ends=(end,))
    assert (text, stopped) == ("", True)


def test_a_damaged_task_is_one_line(chatty, tmp_path):
    shutil.copytree(chatty, tmp_path / "copy")
    (reader.find(tmp_path / "copy").directory / "task.json").write_text("{")
    line = one_line(run("sample", f"checkpoint={tmp_path / 'copy'}", "prompt=a", "device=cpu"))
    assert "task.json is damaged" in line


def test_an_answer_in_a_chat_is_right_if_it_stops_at_that_token(chatty, tmp_path):
    class Parrot:
        def greedy(self, prompts, *, max_new_tokens, ends=()):
            assert ends == (end,) and max_new_tokens > len("12.")
            return [("1.", True), ("2.", False), ("no", True)]

    tokenizer = load(chatty, device="cpu").tokenizer
    end, task = tokenizer.special_tokens["<|im_end|>"], Task.load(reader.find(chatty).directory)
    chats = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": f"{n}."}] for n in (1, 2, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    rows = Rows(read_examples(tmp_path / "a.jsonl", task=task), tokenizer, context=100)
    found = answer(Parrot(), rows, task)
    assert found.right.tolist() == [True, False, False] and found.stopped.tolist() == [True, False, True]
