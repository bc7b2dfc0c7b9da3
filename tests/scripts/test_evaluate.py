"""evaluate.py: perplexity equals transformers' recipe; examples and questions, one checkpoint and several."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batching.batches import WindowEvaluation
from data.labelled.templates import Task
from data.preparation.shards import Split, Tokens
from model.device import Compute
from model.language_model import LanguageModel
from scripts.evaluate import EvaluateConfig, losses_of
from tests.conftest import POEM
from tests.families import make, reference
from tests.programs import ok

CPU = Compute(torch.device("cpu"), torch.float32, compile=False)


def split_of(ids: list[int]) -> Split:
    return Split(Path(), "train", Tokens([np.asarray(ids, np.uint16)]), n_bytes=1, fingerprint="")


@pytest.mark.parametrize("context, stride, n", [(10, 10, 55), (10, 3, 55), (10, 1, 30), (40, 7, 12)])
def test_windows_score_each_token_once_after_enough_others(context, stride, n):
    data, seen = WindowEvaluation(split_of(list(range(n))), context=min(context, n - 1), stride=stride), []
    for number in range(len(data)):
        inputs, targets, _ = data.batch(number, number + 1)
        places = np.flatnonzero(targets[0] >= 0)
        assert number == 0 or places[0] + 1 > data.context - stride  # tokens before it in the window
        assert (inputs[0, places] + 1 == targets[0, places]).all()
        seen += targets[0, places].tolist()
    assert seen == list(range(1, n))
    alone = [data.batch(number, number + 1)[1] for number in range(len(data))]
    assert np.array_equal(data.batch(0, len(data))[1], np.concatenate(alone))


def perplexity_of_transformers(model, ids: torch.Tensor, *, length: int, stride: int) -> float:
    """Their recipe for models of fixed length: windows of `length` tokens, labels -100 where they overlap."""
    nats, count, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        labels = ids[begin:end].clone()
        labels[: done - begin] = -100
        n = int((labels[1:] != -100).sum())
        with torch.no_grad():
            nats += float(model(ids[None, begin:end], labels=labels[None]).loss) * n
        count, done = count + n, end
        if end == len(ids):
            break
    return math.exp(nats / count)


@pytest.mark.parametrize("family", ["gpt2", "llama", "modern"])
@pytest.mark.parametrize("stride", [None, 11])
def test_perplexity_is_that_of_transformers(family, stride):
    model = make(family)
    ids = torch.randint(0, 96, (205,), generator=torch.Generator().manual_seed(3))
    cfg = EvaluateConfig(context=40, stride=stride, batch_size=2)
    lm = LanguageModel(model, None, CPU, Path("run"))
    nats, context, _ = losses_of(cfg, lm, split_of(ids.tolist()))
    expected = perplexity_of_transformers(reference(family, model), ids, length=context + 1, stride=stride or context)
    assert len(nats) == 204 and math.exp(nats.mean()) == pytest.approx(expected, rel=1e-4)


def evaluate(tmp_path, *arguments) -> tuple[str, list[dict]]:
    out = ok("evaluate", *arguments, "device=cpu", f"json={tmp_path / 'e.json'}", f"plot={tmp_path / 'e.png'}")
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "e.json").read_text())
    return out, found if isinstance(found, list) else [found]


def test_a_corpus_compares_checkpoints_with_each_other_and_with_baselines(better, trained, tmp_path):
    (tmp_path / "poems").mkdir()
    for number in range(5):
        (tmp_path / "poems" / f"{number}.txt").write_text(f"{number}. {POEM}" * (number + 1))
    how = [f"corpus={tmp_path / 'poems'}", f"datasets={better.parent / 'datasets'}", "stride=8", "context=16"]
    out, (first, other) = evaluate(tmp_path, f"checkpoint=[{better},{trained}]", *how)
    assert "windows that start every 8 tokens" in out and "paired by document" in out
    assert first["context"] == 16 and first["stride"] == 8 and first["documents"] == 5
    assert first["bits_per_byte_low"] <= first["bits_per_byte"] <= first["bits_per_byte_high"]
    assert first["bits_per_byte"] - other["bits_per_byte"] == pytest.approx(other["difference"]["difference"])
    assert other["difference"]["low"] <= other["difference"]["difference"] <= other["difference"]["high"] < 0
    assert first["words"] == other["words"] and first["perplexity_per_word"] > first["perplexity_per_token"] > 1
    found = first["baselines"]
    assert list(found) == ["uniform", "unigram", "5-gram", "gzip -9", "xz -9e"]
    assert all(name in out for name in found)
    assert found["5-gram"] < found["unigram"] < found["uniform"] and "tokens of the training split" in out
    out, [alone] = evaluate(tmp_path, f"checkpoint={better}", how[0], f"datasets={tmp_path / 'elsewhere'}")
    assert "unigram" not in alone["baselines"] and "no unigram and 5-gram" in out and "disjoint windows" in out


def test_more_context_does_not_score_other_tokens(better, tmp_path):
    (tmp_path / "poem.txt").write_text(POEM * 3)
    how = [f"checkpoint={better}", f"corpus={tmp_path / 'poem.txt'}", f"datasets={tmp_path / 'datasets'}"]
    [disjoint], [overlapping] = (evaluate(tmp_path, *how, *more)[1] for more in ([], ["stride=1"]))
    assert disjoint["tokens"] == overlapping["tokens"] == len(POEM * 3) + 1
    assert disjoint["loss"] != overlapping["loss"]
    assert disjoint["bits_per_byte_low"] is None  # one document


def test_text_that_was_trained_on_is_noted(better, tmp_path):
    verses = {
        "trained.txt": f"10. {POEM}11. {POEM}12. {POEM}",
        "own.txt": "Nobody has written this sentence before. " * 9,
        "short.txt": "the",
    }
    for name, text in verses.items():
        (tmp_path / name).write_text(text)
        out, _ = evaluate(
            tmp_path, f"checkpoint={better}", f"corpus={tmp_path / name}", f"datasets={better.parent / 'datasets'}"
        )
        assert ("was trained on 100% of this text" in out) == (name == "trained.txt")
        assert "intervals over documents" not in out  # of one document
        assert "building the tokenizer" not in out and ": train " not in out  # nothing is trained


def test_a_table_of_labels_is_answered_by_several_checkpoints_beside_baselines(trained, better, tmp_path):
    path = tmp_path / "own.csv"
    rows = [f'"listen to the {"wind" if n % 2 else "gut"}, {n}","{"air" if n % 2 else "body"}"' for n in range(40)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    arguments = [f"checkpoint={better}", f"versus={trained}", f"examples={path}", f"train={path}"]
    out, (first, other) = evaluate(tmp_path, *arguments)
    assert "note: train= has 40 of the examples too, so the score of the bag of words is too high" in out
    names = [row["name"] for row in first["comparison"]["results"]]
    assert names == [str(better), str(trained), "bag of words", "most common label"]
    assert first["comparison"]["labels"] == ["air", "body"] and "comparison" not in other
    assert first["comparison"]["results"][2]["accuracy"] == 1.0 and first["comparison"]["results"][3]["accuracy"] == 0.5
    assert {"accuracy", "accuracy_low", "accuracy_high", "stopped", "exact_match", "macro_f1"} <= first.keys()
    assert first["examples"] == 40 and first["unknown_characters"] == 0 and "bag of words" in out


def test_training_examples_without_a_label_of_the_set_are_refused(better, tmp_path, refused):
    (tmp_path / "other.csv").write_text("text,label\nlisten,sea\n")
    (tmp_path / "own.csv").write_text("text,label\nlisten,air\nnobody,body\n")
    tuned = tmp_path / "tuned"
    shutil.copytree(better, tuned)
    for step in tuned.glob("step_*"):
        Task(labels=("air", "body")).save(step)
    files = [f"examples={tmp_path / 'own.csv'}", f"train={tmp_path / 'other.csv'}"]
    refused("evaluate", f"checkpoint={tuned}", "device=cpu", *files, parts=("train=", "one of the labels air, body"))


def test_the_label_set_is_that_of_the_first_checkpoint_that_has_one(trained, better, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(better, tuned)
    for step in tuned.glob("step_*"):
        Task("Q: {text}", " {label}", ("air", "body", "wind")).save(step)
    pairs = [{"prompt": f"Q: {n}", "completion": (" air", " sea")[n == 5]} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = [{"text": row["prompt"][3:], "label": row["completion"].strip()} for row in pairs]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    found = {}
    for name in ("pairs", "texts"):
        arguments = [f"checkpoint={trained}", f"versus={tuned}", f"examples={tmp_path / name}.jsonl"]
        out, found[name] = evaluate(tmp_path, *arguments)
        assert "labels that were not trained count as wrong: 1 of 6 examples" in out
    assert found["pairs"] == found["texts"]
    assert found["pairs"][0]["comparison"]["labels"] == ["air", "body", "wind"]


OPTIONS = [" heart", " nobody", " wind"]
QUESTIONS = [
    {"prompt": f"{n}. Listen to your", "options": OPTIONS, "completion": OPTIONS[n % 2 * 2]} for n in range(12)
]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def test_questions_are_answered_as_sampling_does_and_compared(trained, better, questions, tmp_path):
    out, (first, other) = evaluate(tmp_path, f"checkpoint={better}", f"versus={trained}", f"questions={questions}")
    ok("sample", f"checkpoint={better}", "mode=score", f"examples={questions}", f"json={tmp_path / 's.json'}")
    sampled = json.loads((tmp_path / "s.json").read_text())
    assert first["accuracies"] == sampled["accuracies"][:-1]
    for number, row in enumerate(first["accuracies"]):
        chosen = [OPTIONS[answer] for answer in first["answers"][row["method"]]]
        right = [answer == question["completion"] for answer, question in zip(chosen, QUESTIONS, strict=True)]
        assert row["accuracy"] == pytest.approx(sum(right) / 12) and row["low"] <= row["accuracy"] <= row["high"]
        found = other["differences"][number]
        assert row["method"] in found["a"] and str(better) in found["b"]
        assert found["difference"] == pytest.approx(row["accuracy"] - other["accuracies"][number]["accuracy"])
    assert "guessing" in out or "always answering" in out


def test_shots_are_questions_with_their_answers(trained, questions, tmp_path):
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps({"prompt": "Listen to the", "options": [" a", " wind"], "completion": " wind"}) + "\n")
    _, [with_shot] = evaluate(
        tmp_path, f"checkpoint={trained}", f"questions={questions}", "shots=1", f"shots_from={shots}"
    )
    written = tmp_path / "written.jsonl"
    rows = [row | {"prompt": f"Listen to the wind\n\n{row['prompt']}"} for row in QUESTIONS]
    written.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, [as_text] = evaluate(tmp_path, f"checkpoint={trained}", f"questions={written}")
    assert with_shot["accuracies"] == as_text["accuracies"] and with_shot["answers"] == as_text["answers"]
    assert with_shot["shots"] == 1


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ("one of corpus=",)),
        (["corpus=a.txt", "questions=b"], ("one of corpus=",)),
        (["questions=q.jsonl", "shots=2"], ("shots_from=",)),
        (["corpus=poem.txt", "stride=0"], ("stride=0",)),
        (["corpus=poem.txt", "context=33"], ("context=33", "at most 32")),
        (["corpus=poem.txt", "context=8", "stride=9"], ("stride=9",)),
        (["questions=q.jsonl", "shots=2", "shots_from=q.jsonl"], ("q.jsonl:1", "shots=2")),
        (["versus=RUN", "corpus=poem.txt"], ("twice",)),
    ],
)
def test_wrong_settings_are_one_line(trained, poem, tmp_path, refused, arguments, parts):
    rows = [{"prompt": f"{n}", "options": ["a", "b"], "completion": "a"} for n in range(2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [argument.replace("RUN", str(trained)) for argument in arguments]
    refused("evaluate", f"checkpoint={trained}", "device=cpu", *arguments, parts=parts)
