"""The benchmarks: each runs at toy size, its last line is JSON, a mistake is one line; contenders take turns."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch

from conf.cli import InputError
from scripts.bench import as_settings
from scripts.benchmarks import measure, nanogpt, tokens, train_loss
from tests.programs import ROOT, finish, start

BENCH = "import sys; from scripts.bench import main; main(sys.argv[1:])"  # of which a test may change a part first


def bench(*arguments, cwd=ROOT):
    return finish(start("-m", "scripts.bench", *arguments, cwd=cwd))


def test_decode_prints_its_table_and_a_line_of_json():
    ended = bench("decode", "shape=toy", "tokens=20", "repeats=1", "compile=false", "threads=1", "transformers=false")
    assert ended.status == 0 and not ended.err, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert result["benchmark"] == "decode" and result["tokens"] == 20
    assert set(result["tokens_per_second"]) == {"float32", "bfloat16", "int8", "float32, by generate()"}
    assert result["greedy_text"]["float32"] == "equal"
    assert result["logit_difference"]["float32"]["largest"] < 1e-4 < result["logit_difference"]["int8"]["largest"]


@pytest.mark.parametrize("layout", ["jsonl", "files", "text"])
def test_prepare_makes_a_corpus_and_measures_memory(layout, tmp_path):
    script = f"from data.corpus import sources; sources.BUILT_IN['shakespeare'] = sources.BUILT_IN['pystdlib']; {BENCH}"
    arguments = ["sizes=[1e6]", f"folder={tmp_path}", f"layout={layout}", "vocab_size=300", "workers=2", "every=0.02"]
    ended = finish(start("-c", script, "prepare", *arguments))
    assert ended.status == 0 and not ended.err, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert len(result["runs"]) == 2
    for row in result["runs"].values():
        assert row["bytes"] > 1e6 and 1e7 < row["peak_pss"] <= row["peak_rss"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"{layout}-1MB"]


def test_tokenizer_compares_with_the_definition_and_with_tiktoken(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"to be or not to be, {number}\n" * 300)
    contenders = "contenders=[nextword,sentencepiece]"
    ended = bench("tokenizer", f"corpora=['{tmp_path}/texts:300']", "oracle=20", "repeats=1", contenders)
    assert ended.status == 0 and not ended.err, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert result["benchmark"] == "tokenizer" and len(result["results"]) == 2
    assert result["targets"]["merges equal to those of the definition"] == [1.0, 1.0]
    assert set(result["results"][0]["seconds"]) == {"nextword", "sentencepiece"}


def test_train_times_one_step_of_the_loop_on_a_device_it_is_given(poem):
    ended = bench("train", "part=gpu", "device=cpu", "shapes=[toy]", f"corpus={poem}", "repeats=1", "steps=10")
    assert ended.status == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    figures = result["shapes"]["toy"]["contenders"]["ours"]
    assert figures["tokens_per_second"] > 0 and figures["resolved"]["device"] == "cpu"


def test_a_loss_over_windows_counts_every_token_but_the_first_once():
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))  # logits that know the last token alone
    ids = torch.arange(50) * 3 % 7
    expected = torch.nn.functional.cross_entropy(table[ids[:-1]], ids[1:]).item()
    for window in (1, 6, 7, 49, 64):
        found = train_loss.split_loss(lambda inputs: table[inputs], ids, window=window, rows=2)
        assert found == pytest.approx(expected)


def test_a_run_is_a_line_with_its_seed_where_it_has_one():
    run = train_loss.Run(None, 1.5, 20.0, 10.0, 0.0, False, {"start": 2.0, "end": 0.0})
    assert train_loss.line("nanoGPT", run).split() == ["nanoGPT", "-", "1.5000", "10.00", "0.0", "20.0", "start", "2.0"]
    assert train_loss.line("any", dataclasses.replace(run, seed=3)).split()[:2] == ["any", "3"]


def test_nanogpts_training_time_leaves_out_its_evaluations():
    taken = [900 if step % 10 == 0 else 20 for step in range(31)]
    lines = [(0.0, f"iter {step}: loss 1.0, time {ms}.00ms, mfu 0") for step, ms in enumerate(taken)]
    ran = measure.Process(lines=lines)
    assert nanogpt.training_seconds(ran, 10) == pytest.approx(31 * 0.02)


def test_a_process_is_told_by_its_lines_and_a_failed_one_is_an_error():
    ran = measure.run_process([sys.executable, "-c", "import os; print('one'); print(os.environ['WHAT'])"], WHAT="two")
    assert ran.text == "one\ntwo" and 0 < ran.until("one") <= ran.until("two") <= ran.until("three") == ran.seconds
    with pytest.raises(InputError, match="status 3: gone"):
        measure.run_process([sys.executable, "-c", "print('gone'); raise SystemExit(3)"])


def test_tokens_sweeps_with_one_seed_and_compares_the_best_rates_with_all(monkeypatch, capsys, tmp_path):
    ran = []

    def train(run_dir, words):
        known = dict(word.split("=", 1) for word in words)
        assert not run_dir.exists() and run_dir not in ran and run_dir.parent == tmp_path
        ran.append(run_dir)
        off = abs(float(known["optimizer.learning_rate"]) - (0.003 if "optimizer" in known else 0.02))
        return {"val_loss": 3.0 + off + int(known["seed"]) / 10 + (1 - int(known["steps"]) / 200)}

    monkeypatch.setattr(tokens, "train", train)
    cfg = tokens.Config(steps=200, shares=[1.0, 0.5], gpt2="model=gpt2_124m optimizer=adamw", out=str(tmp_path))
    tokens.main(cfg, [])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["gpt2"] == {"share": 1.0, "learning_rate": 0.003, "losses": pytest.approx([3.1, 3.2, 3.3])}
    assert [side["learning_rate"] for side in result["default"]] == [0.02, 0.02]
    assert result["default"][1]["losses"] == pytest.approx([3.6, 3.7, 3.8])
    assert [line.split()[-1] for line in lines[-4:-1]] == ["3.3000", "reached", "MISSED"]
    assert len(ran) == len(cfg.gpt2_rates) + 2 + 2 * (len(cfg.default_rates) + 2)


def test_settings_may_be_spelled_as_options():
    words = ["--against", "a b", "--text=x=y", "seeds=1", "--help"]
    assert list(as_settings(words)) == ["against=a b", "text=x=y", "seeds=1", "--help"]


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["train", "target=1.9"], "corpus="),
        (["train", "part=gpu", "device=cpu", "--against", "nowhere"], "train.py"),
        (["train", "part=fast"], "speed"),
        (["train", "part=gpu", "shapes=[2b]", "device=cpu"], "124m"),
        (["prepare", "layout=tar"], "jsonl"),
        (["prepare", "sizes=[]"], "1e6"),
        (["decoed"], "decode"),
        (["decode", "shape=big"], "10m"),
        (["decode", "tokens=0"], "1.."),
        (["decode", "against=nowhere"], "model.py"),
        (["decode", "dtypes=[int4]"], "int8"),
        (["tokenizer", "corpora=[shakespeare]"], "shakespeare:4096"),
        (["tokenizer", "contenders=[nextword,bert]"], "rustbpe"),
    ],
)
def test_a_mistake_is_one_line(arguments, part):
    ended = bench(*arguments)
    assert ended.status == 2 and part in ended.err and ended.err.count("\n") == 1


def test_without_a_name_the_benchmarks_are_listed():
    ended = bench("--help")
    assert ended.status == 0 and "decode" in ended.out


def test_contenders_take_turns_and_what_was_disturbed_is_timed_again(monkeypatch):
    order = []
    answers = iter([(1.0, False), (9.0, True), (2.0, False), (3.0, False), *[(8.0, True)] * measure.PATIENCE])

    def timed(action):
        action()
        return next(answers)

    monkeypatch.setattr(measure, "timed", timed)
    times = measure.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b", "b", "a", *["b"] * measure.PATIENCE]
    assert times["a"].seconds == [1.0, 3.0] and times["a"].disturbed == 0
    assert times["b"].seconds == [2.0, 8.0] and times["b"].disturbed == 1
    assert times["b"].row(16) == {"per_second": 3.2, "lowest": 2.0, "highest": 8.0, "repeats": 2, "disturbed": 1}
