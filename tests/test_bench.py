"""The benchmarks: each runs at toy size, its last line is JSON, a mistake is one line; contenders take turns."""

from __future__ import annotations

import json

import pytest

from scripts.benchmarks import measure

from .programs import ROOT, finish, start

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
    script = f"from data import sources; sources.BUILT_IN['shakespeare'] = sources.BUILT_IN['pystdlib']; {BENCH}"
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


@pytest.mark.parametrize(
    "arguments, part",
    [
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
