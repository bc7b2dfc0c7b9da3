"""The adapter for lm-eval: sums of exact log-probabilities, the argmax, windows of whole texts, answers."""

from __future__ import annotations

import importlib.util
import json
import math
import random

import pytest
import torch

from model.inference.score import token_figures
from sample import load
from scripts.lm_eval import answers, log_likelihoods, text_log_likelihoods
from tests.conftest import POEM
from tests.programs import ok, one_line, run

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """task: choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: QUESTIONS
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{options.index(completion)}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def lm(better):
    return load(better, device="cpu")


def log_p(lm, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids]))[0].double().log_softmax(-1)


def test_log_likelihoods_are_sums_over_the_continuation_and_say_whether_it_is_greedy(lm):
    context = "Listen to your"
    greedy, _ = lm.greedy([lm.encode(context)], max_new_tokens=3)[0]
    pairs = [(context, " heart"), (context, greedy), ("", "Listen"), (context + " ", "gut"), (context, "")]
    found = log_likelihoods(lm, pairs)
    for (before, after), (total, is_greedy) in zip(pairs[:4], found, strict=False):
        spaces = len(before) - len(before.rstrip(" "))
        before, after = before.rstrip(" "), " " * spaces + after
        prefix, ids = lm.encode(before), lm.tokenizer.encode(after)
        rows = log_p(lm, [*prefix, *ids[:-1]])[len(prefix) - 1 :]
        assert total == pytest.approx(sum(float(row[i]) for row, i in zip(rows, ids, strict=True)), abs=1e-5)
        assert is_greedy == (rows.argmax(-1).tolist() == ids)
    assert found[1][1] and not found[0][1] and found[4] == (0.0, True)


def test_of_equally_probable_tokens_only_the_first_is_greedy():
    logits = torch.tensor([[0.0, 2.0, 2.0]]).repeat(2, 1)
    first, second = token_figures(logits, torch.tensor([1, 2]))
    assert first.rank == second.rank == 1 and first.greedy and not second.greedy


def test_a_long_context_is_truncated_on_the_left(lm):
    text = POEM.strip() * 3
    [[whole, _]], [[cut, _]], [[less, _]] = (log_likelihoods(lm, [(text[-n:], " heart")]) for n in (99, 19, 18))
    assert lm.model.config.context == 24  # 19 letters and the first five of six
    assert whole == pytest.approx(cut, abs=1e-5) != pytest.approx(less, abs=1e-4)


@pytest.mark.parametrize("length", [1, 24, 25, 48, 75])
def test_a_whole_text_is_scored_in_windows_as_lm_eval_defines_them(lm, length):
    text = (POEM * 2)[:length]
    ids = [lm.tokenizer.end_id, *lm.tokenizer.encode(text)]
    total = 0.0
    for start in range(1, len(ids), 24):
        stop = min(start + 24, len(ids))
        rows = log_p(lm, ids[max(0, stop - 25) : stop - 1])
        total += sum(float(row[i]) for row, i in zip(rows[start - stop :], ids[start:stop], strict=True))
    assert text_log_likelihoods(lm, ["", text, text]) == pytest.approx([0.0, total, total], abs=1e-4)


def test_answers_end_before_a_stop_string_and_do_not_depend_on_each_other(lm):
    greedy = lm.greedy([lm.encode("Listen")], max_new_tokens=12)[0][0]
    until = {"until": [greedy[4:6]], "max_gen_toks": 12}
    requests = [("Listen", until), ("Listen", {"max_gen_toks": 5}), (POEM * 3, until), ("Listen", until)]
    found = answers(lm, requests, seed=1)
    assert found[0] == found[3] == greedy[: greedy.index(greedy[4:6])] and found[1] == greedy[:5]
    assert found[2] == answers(lm, requests[2:3], seed=1)[0] and greedy[4:6] not in found[2]


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_the_error_names_the_extra(trained):
    line = one_line(run("lm_eval", f"checkpoint={trained}", "tasks=any", "device=cpu"))
    assert "pip install -e '.[lm-eval]'" in line


def make_questions(count: int) -> list[dict]:
    random.seed(1)
    words = [word.strip(".,;") for word in POEM.split()]
    rows = []
    for number in range(count):
        options = {" " + " ".join(random.sample(words, random.randint(1, 3))) for _ in range(9)}
        options = random.sample(sorted(options), random.randint(2, 4))
        prompt = f"{number}. Listen {' '.join(random.sample(words, random.randint(1, 12)))}"
        rows.append({"prompt": prompt, "options": options, "completion": random.choice(options)})
    return rows


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed: pip install -e '.[lm-eval]'")
def test_lm_eval_answers_every_question_as_evaluate_does(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = make_questions(1000)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choices.yaml").write_text(TASK.replace("QUESTIONS", str(tmp_path / "questions.jsonl")))
    common = [f"checkpoint={trained}", "device=cpu"]
    ok("evaluate", *common, "questions=questions.jsonl", "json=ours.json")
    ok("lm_eval", *common, "tasks=choices", "include_path=tasks", "json=theirs.json")
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ours", "theirs"))
    samples = sorted(theirs["samples"]["choices"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(rows) == 1000
    differ = 0
    for number, sample in enumerate(samples):
        scores = [float(total) for total, _ in sample["filtered_resps"]]
        per_byte = [score / len(option) for score, option in zip(scores, rows[number]["options"], strict=True)]
        for name, found in (("raw", scores), ("normalised", per_byte)):
            differ += found.index(max(found)) != ours["answers"][name][number]
    assert differ == 0
    results = theirs["results"]["choices"]
    for row, metric in zip(ours["accuracies"], ("acc", "acc_norm"), strict=False):
        assert math.isclose(row["accuracy"], results[f"{metric},none"])
