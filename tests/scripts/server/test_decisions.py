"""/v1/decisions: the probabilities that classify() gives, for options of several tokens."""

from __future__ import annotations

import math

import pytest
import torch

from data.labelled.templates import Task

PATH = "/v1/decisions"


def choice(*values, **fields):
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]} | fields


def ask(client, *questions, model="plain", text="What a day"):
    return client.post(PATH, {"model": model, "input": text, "questions": list(questions)})


def test_the_labels_of_a_checkpoint_are_scored_as_it_was_fine_tuned_with_its_temperature(client, lms):
    [found] = ask(client, choice("so so", "good", "bad", name="mood"), model="labels").json["answers"]
    [expected] = lms["labels"].classify("What a day")
    assert found["type"] == "choice" and found["name"] == "mood"
    assert [row["value"] for row in found["probabilities"]] == ["so so", "good", "bad"]  # in the order of the question
    shares = {row.label: pytest.approx(row.probability) for row in expected.labels}
    assert {row["value"]: row["probability"] for row in found["probabilities"]} == shares
    assert found["choice"] == expected.labels[0].label and found["confidence"] == shares[found["choice"]]
    assert found["outside"] == pytest.approx(expected.outside)


def test_other_options_are_scored_whole_after_the_question(client, lms):
    lm = lms["plain"]
    [found] = ask(client, choice("good", "goods", True)).json["answers"]
    prompt = lm.encode("What a day\n\nWhich?\n- good\n- goods\n- true\nAnswer:")
    totals = []
    for word in (" good", " goods", " true"):
        ids = [*lm.encode(word), lm.tokenizer.end_id]
        with torch.no_grad():
            rows = lm.model(torch.tensor([[*prompt, *ids[:-1]]]))[0].double().log_softmax(-1)
        totals.append(math.fsum(rows[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids)))
    shares = torch.tensor(totals, dtype=torch.float64).softmax(-1).tolist()
    assert [row["probability"] for row in found["probabilities"]] == pytest.approx(shares, rel=1e-4)
    assert found["probabilities"][2]["value"] is True
    assert found["outside"] == pytest.approx(1 - math.fsum(map(math.exp, totals)))


def test_an_option_continues_the_question_so_it_has_no_prefix(client, lms, monkeypatch):
    lm, asked = lms["plain"], choice("good", "bad")
    [expected] = ask(client, asked).json["answers"]
    monkeypatch.setattr(lm.tokenizer, "prefix", "")
    assert ask(client, asked).json["answers"] == [expected]
    monkeypatch.setattr(lm.tokenizer, "prefix", "#")
    prompt = lm.encode("What a day\n\nWhich?\n- good\n- bad\nAnswer:")
    options = [[*lm.tokenizer.encode(f" {word}", continued=True), lm.tokenizer.end_id] for word in ("good", "bad")]
    shares = lm.label_scores([prompt], options)[0].double().softmax(-1).tolist()
    [found] = ask(client, asked).json["answers"]
    assert [row["probability"] for row in found["probabilities"]] == pytest.approx(shares)


def test_predicates_and_scores_have_openais_shape(client, lms):
    levels = {"type": "score", "instructions": "How warm?", "levels": [{"label": x} for x in ("cold", "mild", "hot")]}
    body = [{"type": "predicate", "name": "sunny", "instructions": "The sun shines."}, levels]
    answer = ask(client, *body).json
    assert answer.keys() >= {"model", "answers", "usage"} and answer["usage"]["output_tokens"] == 0
    predicate, score = answer["answers"]
    task = Task("{text}\n\nTrue or false: The sun shines.\nAnswer:", " {label}", ("true", "false"))
    [expected] = lms["plain"].classify("What a day", task)
    shares = {row.label: row.probability for row in expected.labels}
    assert predicate["name"] == "sunny" and predicate["probability"] == pytest.approx(shares["true"])
    rows = score["probabilities"]
    assert [(row["value"], row["label"]) for row in rows] == [(0, "cold"), (1, "mild"), (2, "hot")]
    assert score["name"] is None and score["score"] == pytest.approx(
        rows[1]["probability"] + 2 * rows[2]["probability"]
    )
    assert score["confidence"] == max(row["probability"] for row in rows)


def test_a_chat_model_is_asked_in_its_template(client, lms):
    [found] = ask(client, choice("a", "b"), model="chat").json["answers"]
    from data.labelled.rows import chat_prompt
    from data.labelled.templates import CHAT_TEMPLATES

    lm = lms["chat"]
    said = [{"role": "user", "content": "What a day\n\nWhich?\n- a\n- b"}]
    ids = chat_prompt(CHAT_TEMPLATES["chatml"], said, lm.tokenizer)
    end = lm.tokenizer.special_tokens["<|im_end|>"]
    scores = lm.label_scores([ids], [[*lm.encode(word), end] for word in "ab"])[0].double().softmax(-1).tolist()
    assert [row["probability"] for row in found["probabilities"]] == pytest.approx(scores)


def test_messages_and_parts_are_an_input_too(client):
    whole = ask(client, choice("a", "b"), text='What {"x": 1}').json["answers"]
    parts = [{"type": "input_text", "text": "What "}, {"type": "input_json", "data": {"x": 1}}]
    assert ask(client, choice("a", "b"), text=[{"role": "user", "content": parts}]).json["answers"] == whole


@pytest.mark.parametrize(
    "question, part",
    [
        (choice("a"), "must have 2 to 255"),
        (choice("a", "a"), "must be distinct"),
        (choice("a", "x" * 110), "has an option of 111 tokens; at most 100"),
        (choice(True, "true"), "must be distinct"),
        (choice("a", 1), "'questions[0].choices[1].value' must be a string or true or false"),
        (choice("a", "b", instructions=None), "'questions[0].instructions' is required"),
        ({"type": "essay", "instructions": ""}, "must be predicate, choice or score"),
        ({"type": "predicate", "instructions": [{"type": "input_image"}]}, "parts of type input_text"),
        ({"type": "predicate", "instructions": "x" * 200}, "exceed the model's context"),
    ],
)
def test_what_is_refused(client, question, part):
    answer = ask(client, question)
    assert answer.status == 400 and part in answer.json["error"]["message"]
    assert ask(client).status == 400 and ask(client, *[choice("a", "b")] * 401).status == 400
