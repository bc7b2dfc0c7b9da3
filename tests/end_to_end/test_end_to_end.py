"""From a user's own text to a model, to text and next tokens, to a fine-tuned model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sample import load
from tests.conftest import POEM
from tests.programs import NANO, ROOT, finish, ok, run, start


def test_a_folder_of_mixed_files_is_prepared_again_only_when_it_changes(tmp_path):
    corpus = tmp_path / "my notes"
    corpus.mkdir()
    (corpus / "a.txt").write_text(POEM * 20, encoding="utf-8")
    (corpus / "b.md").write_text("# Heart\n\n" + POEM * 20, encoding="utf-8")
    rows = [json.dumps({"text": f"{number} {POEM}"}) for number in range(20)]
    (corpus / "c.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    small = [option for option in NANO if not option.startswith("tokenizer")]
    options = [f"corpus={corpus}", f"datasets={tmp_path / 'datasets'}", *small, "tokenizer.vocab_size=300", "steps=3"]

    def prepared() -> set[str]:
        return {path.name for path in (tmp_path / "datasets").iterdir() if path.name.startswith("my-notes")}

    ok("train", *options, f"run_dir={tmp_path / 'one'}")
    first = prepared()
    assert len(first) == 1
    assert "already prepared" in ok("train", *options, f"run_dir={tmp_path / 'two'}")
    assert prepared() == first
    (corpus / "a.txt").write_text((POEM * 20).replace("Listen", "listen", 1), encoding="utf-8")
    assert "already prepared" not in ok("train", *options, f"run_dir={tmp_path / 'three'}")
    assert len(prepared()) == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has memorized the poem, its corpus deleted. Tests only read it."""
    folder = tmp_path_factory.mktemp("memorized")
    poem = folder / "poem.txt"
    poem.write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    torch.set_num_threads(1)
    out = ok(
        "train", f"corpus={poem}", f"datasets={folder / 'datasets'}", *NANO, "model.d_model=64", "model.n_layer=2",
        "steps=150", "batch_size=8", "eval_every=75", f"run_dir={folder / 'run'}",
    )  # fmt: skip
    assert "stopped after step" not in out, "a signal reached the run"
    shutil.rmtree(folder / "datasets")
    poem.unlink()
    return folder / "run"


def test_from_text_to_text_to_labels(trained, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / "moved"
    shutil.copytree(next(trained.glob("step_*150")), moved)  # one step directory is all that sampling needs

    options = [f"checkpoint={moved}", "temperature=0", "max_new_tokens=40"]
    ended = finish(start(str(ROOT / "sample.py"), *options, "prompt=Listen to your heart. Listen to y", cwd=elsewhere))
    assert ended.status == 0, ended.err
    assert ended.out.startswith("Listen to your heart. Listen to your gut, your body;")

    result = elsewhere / "next.json"
    out = ok(
        "sample", f"checkpoint={moved}", "mode=next_token", "prompt=Listen to your hear", f"json={result}",
        f"plot={elsewhere / 'next.png'}", "top=5",
    )  # fmt: skip
    table = json.loads(result.read_text())
    assert table["prompt"] == "Listen to your hear" and len(table["tokens"]) == 5
    assert table["tokens"][0]["text"] == "t" and table["tokens"][0]["probability"] > 0.9
    assert table["tokens"][0].keys() == {"id", "text", "probability"}
    assert "rank" in out and "'t'" in out
    assert (elsewhere / "next.png").read_bytes().startswith(b"\x89PNG")

    examples = tmp_path / "labels.jsonl"
    words = ["heart", "gut", "body", "wind", "nobody", "your", "listen"]
    rows = [
        {"prompt": f"{word} {'.,;'[k]}{'.,;'[j]}:", "completion": " long" if len(word) > 4 else " short", "group": word}
        for word in words
        for k in range(3)
        for j in range(3)
    ]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "ear .,:", "completion": " short"}))
    out = ok(
        "finetune", f"checkpoint={moved}", f"examples={examples}", f"val_examples={held_out}", "device=cpu",
        "dtype=float32", "batch_size=9", "steps=60", "optimizer.learning_rate=0.01", f"run_dir={tmp_path / 'labels'}",
    )  # fmt: skip
    assert "[ |l|o|n|g|<|endoftext|>]" in out or "[ |s|h|o|r|t|<|endoftext|>]" in out
    scores = tmp_path / "scores.json"
    out = ok(
        "evaluate", f"checkpoint={tmp_path / 'labels'}", f"versus={moved}", f"examples={examples}", f"json={scores}",
        "device=cpu",
    )  # fmt: skip
    tuned, base = json.loads(scores.read_text())
    assert tuned["accuracy"] > 0.95 and tuned["stopped"] > 0.99
    assert base["accuracy"] < 0.5
    assert tuned["accuracy_low"] <= tuned["accuracy"] <= tuned["accuracy_high"]
    assert ok("sample", f"checkpoint={tmp_path / 'labels'}", "prompt=heart ..:", "temperature=0").strip() == (
        "heart ..: long"
    )


def test_an_accuracy_of_zero_over_a_few_examples_has_a_wide_interval(trained, tmp_path):
    examples, scores = tmp_path / "examples.jsonl", tmp_path / "scores.json"
    rows = [{"prompt": f"{number} to", "completion": "never this"} for number in range(6)]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ok("evaluate", f"checkpoint={trained}", f"examples={examples}", f"json={scores}", "device=cpu")
    score = json.loads(scores.read_text())
    assert score["accuracy"] == 0 == score["accuracy_low"] and 0.3 < score["accuracy_high"] < 0.5


def test_python_interface_streams_what_it_generates(trained):
    lm = load(trained)
    whole = lm.generate(["Listen to "], max_new_tokens=30, seed=4)[0]
    assert "".join(lm.stream("Listen to ", max_new_tokens=30, seed=4)) == whole.text
    assert len(whole.tokens) == len(whole.log_probabilities)
    first = {token.id: token.probability for token in lm.next_tokens("Listen to ", top=10**6)}
    assert abs(sum(first.values()) - 1) < 1e-5
    assert abs(first[whole.tokens[0]] - 2.718281828459045 ** whole.log_probabilities[0]) < 1e-5


def test_samples_are_reproducible_and_differ_among_themselves(trained, tmp_path):
    options = [f"checkpoint={trained}", "prompt=Listen", "num_samples=3", "max_new_tokens=25", "temperature=1.5"]
    texts = []
    for name in ("one", "two"):
        ok("sample", *options, f"json={tmp_path / name}")
        texts.append([row["text"] for row in json.loads((tmp_path / name).read_text())])
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    ok("sample", *options, "seed=2", f"json={tmp_path / 'three'}")
    assert [row["text"] for row in json.loads((tmp_path / "three").read_text())] != texts[0]


def test_prompts_come_from_files_and_standard_input(trained, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_bytes(b"Listen to your \n")
    options = [f"checkpoint={trained}", "mode=next_token", f"json={tmp_path / 'out.json'}"]
    ok("sample", *options, f"prompt_file={tmp_path / 'prompt.txt'}")
    assert json.loads((tmp_path / "out.json").read_text())["prompt"] == "Listen to your "
    with (tmp_path / "prompt.txt").open() as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", file)
        ok("sample", *options)
    assert json.loads((tmp_path / "out.json").read_text())["prompt"] == "Listen to your "


def test_a_corpus_is_scored_in_bits_per_byte(trained, tmp_path):
    (tmp_path / "known.txt").write_text(POEM * 10, encoding="utf-8")
    (tmp_path / "strange.txt").write_text(POEM[::-1] * 10, encoding="utf-8")
    scores = {}
    for name in ("known", "strange"):
        corpus = [f"corpus={tmp_path / name}.txt", f"datasets={tmp_path / 'other'}", f"json={tmp_path / name}.json"]
        ok("evaluate", f"checkpoint={trained}", *corpus, "device=cpu")
        scores[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert scores["known"]["bits_per_byte"] < 1 < scores["strange"]["bits_per_byte"]
    assert scores["known"]["bytes"] == len(POEM * 10)
    chars = scores["known"]["tokens"]
    assert chars == len(POEM * 10) + 1  # the end token is a target too
    assert scores["known"]["loss"] * chars / 0.6931471805599453 / scores["known"]["bytes"] == pytest.approx(
        scores["known"]["bits_per_byte"]
    )


def test_evaluation_reads_a_corpus_as_preparation_does(trained, tmp_path):
    corpus = tmp_path / "two.txt"
    corpus.write_bytes(POEM.encode() + b"<|>\n" + POEM.encode()[:-1] + b"\xff\n")
    base = ["evaluate", f"checkpoint={trained}", f"corpus={corpus}", "device=cpu", f"datasets={tmp_path / 'datasets'}"]
    assert "UTF-8" in run(*base).err
    out = ok(*base, "invalid_utf8=skip", "document_separator=<|>")
    assert f"over {len(POEM):,} bytes" in out
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"text": POEM}) + "\n{broken\n")
    base[2] = f"corpus={lines}"
    assert run(*base).status == 2
    assert f"over {len(POEM):,} bytes" in ok(*base, "max_bad_lines=1")


@pytest.mark.slow
def test_examples_resume_as_text_does(trained, tmp_path):
    examples = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"{number}:", "completion": str(number % 3)} for number in range(40)]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [f"checkpoint={trained}", f"examples={examples}", "device=cpu", "batch_size=8"]
    ok("finetune", *common, "steps=4", f"run_dir={tmp_path / 'tuned'}")
    held_out = (tmp_path / "tuned" / "held_out.jsonl").read_text().splitlines()
    assert 0 < len(held_out) < 40 and all(json.loads(line) in rows for line in held_out)
    assert "at step 4" in ok("finetune", f"run_dir={tmp_path / 'tuned'}", *common, "resume=true", "steps=6")
    examples.write_text(examples.read_text().replace('"0"', '"4"', 1))
    refused = run("finetune", f"run_dir={tmp_path / 'tuned'}", "resume=true", "steps=8")
    assert refused.status == 2 and "data fingerprint" in refused.err
    assert (tmp_path / "tuned" / "held_out.jsonl").read_text().splitlines() == held_out
