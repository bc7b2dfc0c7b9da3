"""Text that the tokenizer changes: every program says which characters it does not know; special tokens are tokens."""

from __future__ import annotations

import io
import json

import pytest

from tests.programs import NANO, ok, run

STRANGE = "Listen to your herz, 日本. " * 60


@pytest.fixture
def strange(trained, tmp_path):
    """Arguments for the character model, and files of text that it does not know."""
    (tmp_path / "strange.txt").write_text(STRANGE, encoding="utf-8")
    (tmp_path / "poem.txt").write_text("Listen to your heart. " * 60, encoding="utf-8")
    lines = [
        json.dumps({"prompt": f"{n} Listen {'日' * (n % 2)}", "completion": "日本", "group": str(n)}) for n in range(9)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:4]))
    questions = [json.dumps({"prompt": "to", "options": ["日", "a"], "completion": "a"})]
    (tmp_path / "questions.jsonl").write_text("\n".join(questions))
    return [f"checkpoint={trained}", "device=cpu", "dtype=float32"]


def test_no_bits_per_byte_for_text_that_the_tokenizer_cannot_give_back(strange, tmp_path):
    datasets, scores = f"datasets={tmp_path / 'datasets'}", {}
    for name in ("strange", "poem"):
        out = ok("evaluate", *strange, f"corpus={tmp_path / name}.txt", datasets, f"json={tmp_path / name}.json")
        scores[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert ("180 characters in the corpus ('z' 60 times, '日' 60 times, '本' 60 times)" in out) == (
            name == "strange"
        )
        assert ("no bits/byte" in out) == (name == "strange")
    assert scores["strange"]["bits_per_byte"] is None and scores["strange"]["unknown_characters"] == 180
    assert scores["poem"]["bits_per_byte"] > 0 and scores["poem"]["unknown_characters"] == 0


def test_training_goes_on_with_unknown_characters_and_says_so(strange, tmp_path):
    corpus = [f"corpus={tmp_path / 'strange.txt'}", f"datasets={tmp_path / 'datasets'}"]
    how = ["steps=2", "batch_size=4", "sample_every=2", "sample_prompt=ü", f"run_dir={tmp_path / 'run'}"]
    out = ok("train", *strange, *corpus, *how)
    assert "characters in the train split" in out and "characters in the val split" in out and "sample_prompt=" in out
    assert "no bits/byte: unknown characters" in out
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val_loss" in row for row in metrics) and not any("val_bits_per_byte" in row for row in metrics)
    manifest = json.loads(
        (tmp_path / "run" / (tmp_path / "run" / "best").read_text().strip() / "manifest.json").read_text()
    )
    assert "val_loss" in manifest and "val_bits_per_byte" not in manifest


def test_fine_tuning_and_its_evaluation_say_that_labels_cannot_be_learned(strange, tmp_path):
    labels = f"examples={tmp_path / 'labels.jsonl'}"
    out = ok("finetune", *strange, labels, f"run_dir={tmp_path / 'tuned'}", "steps=2", "batch_size=2")
    assert "22 characters in the examples" in out and "18 of them are in completions" in out and "no bits/byte" in out
    out = ok("evaluate", *strange, labels, f"json={tmp_path / 'out.json'}")
    assert "22 characters in" in out and json.loads((tmp_path / "out.json").read_text())["unknown_characters"] == 22


@pytest.mark.parametrize(
    "arguments, places",
    [
        (["prompt=日", "max_new_tokens=2", "stop=本"], ["the prompt ('日')", "stop= ('本')"]),
        (["mode=next_word", "prompt=to", 'compare_prompts=["日"]'], ["the prompts ('日')"]),
        (["mode=score", "text=日日", "prompt=to"], ["text= ('日' 2 times)"]),
        (["mode=score", 'options=["日","a"]', "neutral=本", "method=pmi"], ["options= ('日')", "neutral= ('本')"]),
        (["mode=score", "examples=questions.jsonl"], ["questions.jsonl ('日')"]),
        (["prompts=prompts.jsonl", "outputs=out.jsonl", "max_new_tokens=2"], ["first in line 2 ('日' 2 times)"]),
    ],
)  # fmt: skip
def test_sampling_names_the_place(strange, tmp_path, monkeypatch, arguments, places):
    monkeypatch.chdir(tmp_path)
    ended = run("sample", *strange, *arguments)
    assert ended.status == 0 and all(place in ended.err for place in places), ended.err
    assert ended.err.count("does not know") == len(places)


def test_a_score_has_no_bits_per_byte_either(strange, tmp_path):
    for text, known in (("日", False), ("heart", True)):
        out = ok("sample", *strange, "mode=score", f"text={text}", f"json={tmp_path / 'out.json'}")
        assert (json.loads((tmp_path / "out.json").read_text())["bits_per_byte"] is not None) == known
        assert ("no bits/byte" in out) != known


def test_chat_and_the_tokenizer_tool_say_it(strange, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Listen 日\nListen\n"))
    assert ok("sample", *strange, "mode=chat", "max_new_tokens=2").count("1 character in this line ('日')") == 1
    tokenizer = next(trained.glob("step_*")) / "tokenizer"
    assert "'日'" in ok("tokenize", "mode=show", f"tokenizers={tokenizer}", "text=a日")
    corpus = [f"corpus={tmp_path / 'strange.txt'}", f"json={tmp_path / 'out.json'}"]
    assert "180 characters" in ok("tokenize", "mode=compare", f"tokenizers={tokenizer}", *corpus)
    assert json.loads((tmp_path / "out.json").read_text())["tokenizers"][0]["unknown_characters"] == 180


def test_special_tokens_of_a_corpus_are_one_token_in_the_templates_of_fine_tuning_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.txt").write_text("<|user|>how are you<|bot|>well\n" * 60)
    template = [json.dumps({"prompt": f"<|user|>{n}<|bot|>", "completion": "well", "group": str(n)}) for n in range(9)]
    (tmp_path / "labels.jsonl").write_text("\n".join(template))
    special = 'tokenizer.special_tokens=["<|user|>","<|bot|>"]'
    out = ok("train", "corpus=chat.txt", *NANO, special, "tokenizer.allow_special=true", "steps=1", "run_dir=run")
    assert "ordinary text" not in out
    out = ok("finetune", "checkpoint=run", "examples=labels.jsonl", "run_dir=tuned", "steps=1", "batch_size=2")
    assert "\n<|user|>|" in out and "|<|bot|>[w|e|l|l|<|endoftext|>]" in out
    ok(
        "sample",
        "checkpoint=tuned",
        "mode=score",
        "prompt=<|user|>how are you<|bot|>",
        "text=well<|user|>",
        "json=s.json",
    )
    assert [row["text"] for row in json.loads((tmp_path / "s.json").read_text())["tokens"]] == [*"well", "<|user|>"]
    out = ok("train", "corpus=chat.txt", *NANO, special, "steps=1", "run_dir=text")
    assert "'<|user|>' 54 times" in out and "tokenizer.allow_special=true" in out


def test_a_run_from_before_allow_special_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poem.txt").write_text("Listen to your heart. " * 60)
    ok("train", "corpus=poem.txt", *NANO, "steps=1", "run_dir=run")
    config = tmp_path / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "allow_special" not in line))
    (folder,) = (tmp_path / "datasets").glob("poem-*")
    assert "allow_special" not in (folder / "index.json").read_text()  # so its fingerprint is the old one
    assert "resuming" in ok("train", "run_dir=run", "resume=true", "steps=2")
