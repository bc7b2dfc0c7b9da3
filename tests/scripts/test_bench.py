"""Benchmarks: each runs at toy size and ends with a line of JSON; contenders take turns; a mistake is one line."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conf import cli
from conf.cli import InputError
from data.corpus.corpora import Document
from data.preparation.config import PrepareConfig
from scripts.bench import main
from scripts.benchmarks import contention, curate, decode, measure, next_word, prepare, tokens
from scripts.benchmarks.contenders import nanogpt
from scripts.benchmarks.pretrained import benchmark as pretrained
from scripts.benchmarks.train import benchmark as train
from scripts.benchmarks.train import runs
from scripts.benchmarks.train.shapes import SHAPES, VARIANTS
from tests.programs import capture, ok, run

NANOGPT = """
import torch
from types import SimpleNamespace

GPTConfig = SimpleNamespace
steps = []

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = torch.nn.Embedding(config.vocab_size, 8)
        self.head = torch.nn.Linear(8, config.vocab_size)
        self.transformer = SimpleNamespace(h=[SimpleNamespace(attn=SimpleNamespace(dropout=0.5))])

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate)

    def forward(self, ids, targets):
        steps.append(len(ids))
        logits = self.head(self.embed(ids))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""

PREPARE = """
import json, subprocess, sys
with open("arguments", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
subprocess.run([sys.executable, "-c", "import time; held = b'x' * 50_000_000; time.sleep(0.3)"])
print("prepared-here")
"""


def bench(*arguments):
    """Runs a benchmark that must succeed; returns its line of JSON."""
    ended = capture(lambda: main(list(map(str, arguments))))
    assert ended.status == 0 and not ended.err, ended.err
    return json.loads(ended.out.splitlines()[-1])


def test_decode_compares_texts_and_speeds_of_one_row_and_of_several(monkeypatch):
    monkeypatch.setattr(decode, "memory_bandwidth", lambda device: 1e10)
    settings = ["shape=toy", "tokens=20", "repeats=1", "compile=false", "threads=1", "device=cpu", "rows=3"]
    result = bench("decode", *settings, "dtypes=[float32,int8]")
    own = {"float32", "float32, by generate()", "float32, 3 rows", "int8", "int8, by generate()", "int8, 3 rows"}
    assert set(result["tokens_per_second"]) == own | {"transformers float32", "transformers bfloat16"}
    assert set(result["greedy_text"]) == {name for name in result["tokens_per_second"] if "float32" in name}
    assert all(found == {"same_tokens": 20, "gap": None} for found in result["greedy_text"].values())
    assert result["logit_difference"]["float32"]["largest"] < 1e-4 < result["logit_difference"]["int8"]["largest"]
    assert set(result["ratios"]) >= {"float32, 3 rows / float32, by generate()", "int8 / transformers bfloat16"}


def test_without_transformers_decode_says_so_and_goes_on(monkeypatch):
    monkeypatch.setattr(decode, "memory_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(decode, "is_installed", lambda name: False)
    settings = ["shape=toy", "tokens=2", "repeats=1", "compile=false", "threads=1", "device=cpu", "dtypes=[float32]"]
    ended = capture(lambda: main(["decode", *settings]))
    assert ended.status == 0 and "transformers is not installed" in ended.out
    assert set(json.loads(ended.out.splitlines()[-1])["tokens_per_second"]) == {"float32", "float32, by generate()"}


def test_on_a_gpu_each_dtype_is_decoded_captured_eager_and_in_many_rows():
    found = decode.forms(decode.Config(), on_gpu=True)
    assert [form.name for form in found[:4]] == [
        "float32",
        "float32 eager",
        "float32, by generate()",
        "float32, 64 rows",
    ]
    assert {form.dtype for form in found} == {"float32", "bfloat16"}
    assert [form.name for form in found if not form.compile] == ["float32 eager", "bfloat16 eager"]
    rows = {form.name: {"per_second": 10.0 * form.rows} for form in found}
    assert decode.ratios_of(rows, {form.name: form for form in found}, {"bfloat16": "bfloat16"}) == {
        "bfloat16 / bfloat16 eager": 1.0,
        "float32, 64 rows / float32, by generate()": 64.0,
        "bfloat16, 64 rows / bfloat16, by generate()": 64.0,
    }


def test_texts_that_part_show_how_close_the_two_best_logits_were():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.5, 0.25, 0.0]])
    found = decode.first_difference([0, 0], [0, 1], logits)
    assert found == {"same_tokens": 1, "gap": 0.25} and "from token 1" in decode.describe_difference(found)


def test_bulk_counts_the_tokens_of_each_batch_size():
    result = bench(
        "bulk", "batch_sizes=[2,4]", "max_new_tokens=3", "prompt_tokens=4", "singles=1", "repeats=1", "threads=1"
    )
    assert set(result["ratios"]) == {"one at a time", "batch of 2", "batch of 4"}


def test_engine_counts_what_its_clients_get(trained):
    settings = ["clients=3", "waiting_clients=2", "prompt_tokens=4", "max_new_tokens=3", "repeats=1", "threads=1"]
    result = bench("engine", f"checkpoint={trained}", *settings)
    assert list(result["clients"]) == ["1", "2", "3"] and result["clients"]["1"]["ratio"] == 1
    assert all(row["first_token_ms"] <= row["first_token_ms_p95"] for row in result["clients"].values())


def test_fine_tuning_steps_are_compared_at_equal_gradients():
    result = bench("finetune", "prompt_tokens=20", "batch_size=2", "n_layer=1", "vocab_size=64", "steps=1", "repeats=1")
    assert set(result["steps_per_second"]) == {"head on targets only", "head on all tokens"}
    assert result["difference"] < 1e-5 and result["ratio"] > 0


@pytest.mark.slow
def test_contention_compares_both_sides_with_each_neighbour(monkeypatch):
    monkeypatch.setattr(contention, "make_model", lambda _, seed: decode.make_model("toy", seed))
    result = bench("contention", "seconds=0.02", "settle=0", "repeats=1")
    for work in ("training", "decoding"):
        assert list(result[work]) == ["alone", "beside an equal", "beside nice 19"]
        assert all(row["per_second"] > 0 for sides in result[work].values() for row in sides.values())
        assert result[work]["alone"]["before"]["of_alone"] == 1


def test_a_neighbour_is_busy_at_its_priority_and_ends():
    with contention.busy_process(None):
        pass
    with contention.busy_process(3) as process:
        assert process.poll() is None
        deadline = time.monotonic() + 20
        while os.getpriority(os.PRIO_PROCESS, process.pid) < os.nice(0) + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.nice(0) + 3
    assert process.poll() is not None


def test_next_word_times_prompts_that_end_in_a_word(trained, poem):
    settings = [f"checkpoint={trained}", f"corpus={poem}", "device=cpu", "n_prompts=2", "repeats=1"]
    result = bench("next_word", *settings, "top=[10]")
    assert (
        list(result["seconds"]) == ["top 10"]
        and result["prompts"] == 2
        and 0 <= result["seconds"]["top 10"]["certified"] <= 1
    )
    prompts = next_word.draw_prompts(next_word.Config(corpus=str(poem), n_prompts=20))
    assert all(prompt[-1].isalnum() and len(prompt.split()) <= 40 for prompt in prompts)


def test_on_a_gpu_next_word_also_times_the_cpu(trained, poem, monkeypatch):
    """With the CPU's model in place of a GPU's."""

    def load(path, *, device, dtype):
        lm = next_word_load(path, device="cpu", dtype=dtype)
        return replace(lm, compute=replace(lm.compute, device=torch.device(device)))

    seconds = {
        where: {name: dict.fromkeys(("median", "p95", "highest", "certified"), value) for name in ("top 10", "top 100")}
        for where, value in (("cuda", 0.25), ("cpu", 1.0))
    }
    next_word_load = next_word.load
    monkeypatch.setattr(next_word, "load", load)
    monkeypatch.setattr(next_word, "time_searches", lambda lm, prompts, cfg: seconds[lm.compute.device.type])
    settings = [f"checkpoint={trained}", f"corpus={poem}", "device=cuda", "n_prompts=2", "repeats=1"]
    result = bench("next_word", *settings)
    assert result["ratios"] == {"top 10": 4.0, "top 100": 4.0} and result["cpu_seconds"] == seconds["cpu"]


def test_pretrained_compares_texts_and_speeds_with_transformers_and_proves_next_words(monkeypatch, trained):
    monkeypatch.setattr(pretrained, "llama_cpp_peers", lambda *_, gguf: iter(()))
    settings = [f"checkpoint={trained}", "prompt='1. to'", "tokens=5", "repeats=1", "threads=1", "n_prompts=2", "top=2"]
    result = bench("pretrained", *settings, "contenders=[float32,int8]", "next_word_dtypes=[float32]")
    assert result["texts"]["float32"] == result["texts"]["transformers float32"] == "equal"
    assert result["bytes"]["int8"] < result["bytes"]["float32"]
    assert result["next_words"]["float32"]["prompts"] == 2
    assert pretrained.agreement([1, 2, 3], [1, 2, 4]) == "differs from token 2"


@pytest.mark.slow
def test_prepare_makes_a_corpus_and_measures_the_memory_of_all_processes(tmp_path, monkeypatch):
    """With a program in place of scripts.prepare, whose child holds 50 MB."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "prepare.py").write_text(PREPARE)
    plays = [Document("play", "\n\n".join(f"Paragraph {number} of a play." for number in range(999)))]
    monkeypatch.setattr(prepare, "documents", lambda corpus, cache: iter(plays))
    monkeypatch.setattr(prepare, "FILE_SIZE", 600_000)
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    result = bench("prepare", "sizes=[1e6]", f"folder={tmp_path / 'work'}", "vocab_size=300", "every=0.02")
    assert len(result["runs"]) == 2
    for row in result["runs"].values():
        assert row["bytes"] > 1e6 and 5e7 < row["peak_pss"] <= row["peak_rss"]
    assert len(list((tmp_path / "work" / "jsonl-1MB").iterdir())) == 2 and not (tmp_path / "work" / "prepared").exists()
    trained, given = map(json.loads, (tmp_path / "arguments").read_text().splitlines())
    for arguments in (trained, given):
        config, _ = cli.compose(PrepareConfig, name="prepare", arguments=arguments)
        assert config.corpus == str(tmp_path / "work" / "jsonl-1MB")
    assert given[-1] == "tokenizer.path=prepared-here/tokenizer"


def test_curate_finds_the_planted_copies(tmp_path):
    (tmp_path / "words.txt").write_text(" ".join(f"word{number * number % 9973}" for number in range(30_000)))
    settings = [f"corpus={tmp_path / 'words.txt'}", "documents=100", "exact=10", "near=10"]
    result = bench("curate", *settings)
    assert result["exact copies found"] == 1 and result["near copies found"] > 0.5
    planted = curate.plant(curate.Config(corpus=str(tmp_path / "words.txt"), documents=100, exact=10, near=10))
    assert all(planted.texts[one] == planted.texts[two] for one, two in planted.exact)
    assert all(0.2 < curate.jaccard(planted.texts[one], planted.texts[two]) < 1 for one, two in planted.near)


def test_tokenizer_compares_training_and_encoding(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"to be or not to be, {number}\n" * 300)
    settings = [f"corpora=['{tmp_path}/texts:300']", "repeats=1", "contenders=[ours,sentencepiece]", "workers=1"]
    result = bench("tokenizer", *settings)
    assert result["benchmark"] == "tokenizer" and len(result["results"]) == 2
    assert set(result["results"][0]["training"]) == {"ours", "sentencepiece"}
    assert set(result["results"][0]["encoding"]) == {"ours", "tiktoken"}


def test_train_times_the_programs_own_training(poem, tmp_path, monkeypatch):
    def in_this_process(command):
        return ok("prepare", *command[3:]) if "scripts.prepare" in command else ok("train", *command[2:])

    for module in (train, runs):
        monkeypatch.setattr(module, "run_process", in_this_process)
    monkeypatch.setattr("scripts.prepare.data_report.show", lambda *_: None)  # draws a plot
    settings = ["shapes=[toy]", "device=cpu", "compile=false", f"corpus={poem}", f"datasets={tmp_path / 'datasets'}"]
    settings += ["variants=[modern]", "batch_sizes=[2]", "common=dtype=float32"]
    result = bench("train", *settings, "repeats=1", "steps=5")
    row = result["shapes"]["toy"]["contenders"]["ours 2 modern"]
    assert row["per_second"] > 0 and 0 < row["causal_mfu"] < row["mfu"] < 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_variant_is_a_command_of_train_py_with_about_the_same_flops(shape, variant):
    ended = run("train", "--cfg", "job", "run_dir=out", *shape.settings(variant))
    assert ended.status == 0, ended.err
    flops, causal = shape.flops_per_token(512, variant)
    assert flops - causal == 6 * shape.n_layer * shape.d_model * shape.context
    assert flops == shape.flops_per_token(512, "default")[0]


def test_both_programs_train_at_each_batch_size_and_other_variants_at_the_largest():
    def names(*, device="cuda", shape="124m", **settings):
        cfg = train.Config(**settings)
        return [one.name for one in train.contenders(cfg, SHAPES[shape], device, 65)]

    rows = ["ours 12", "ours 64", "ours 64 deterministic", "ours 64 document_mask", "ours 64 modern"]
    assert names() == rows
    assert names(against="x") == [*rows, "nanoGPT 12 bfloat16", "nanoGPT 64 bfloat16"]
    assert names(shape="1b", against="x") == ["ours 16", "nanoGPT 8 bfloat16", "nanoGPT 16 bfloat16"]
    chosen = {"batch_sizes": [8, 4], "variants": ["modern"], "against": "x"}
    both = [f"nanoGPT {size} {dtype}" for dtype in ("bfloat16", "float32") for size in (4, 8)]
    assert names(**chosen, device="cpu") == ["ours 8 modern", *both]
    assert SHAPES["124m"].steps_at(12) * 12 == pytest.approx(SHAPES["124m"].steps_at(64) * 64, rel=0.01)


def test_a_run_that_fails_has_its_line_and_the_others_go_on(capsys):
    calls = []

    def fails():
        calls.append("fails")
        raise InputError("python train.py x=1 ended with status 1: out of memory")

    speeds = iter([10.0, 30.0, 20.0])
    works = {"tokens_per_second": 0.0, "peak_memory": 5}
    contenders = {"bad": fails, "good": lambda: works | {"tokens_per_second": next(speeds)}}
    found = runs.in_turns(contenders, repeats=3, on_gpu=True)
    assert found["good"].speeds == [10.0, 30.0, 20.0] and found["good"].peak_memory == 5
    assert calls == ["fails"] and found["bad"].failed == "status 1: out of memory"
    assert "failed: status 1: out of memory" in capsys.readouterr().out
    shape, contender = SHAPES["toy"], train.Contender("ours", "default", 4)
    row = train.row_of(contender, found["bad"], shape, 65, 1e12)
    assert row["failed"] == "status 1: out of memory" and "failed: status 1" in train.describe_row("bad", row)
    row = train.row_of(contender, found["good"], shape, 65, 1e6)
    assert (row["per_second"], row["lowest"], row["highest"]) == (20.0, 10.0, 30.0)
    assert row["mfu"] == round(20.0 * row["flops_per_token"] / 1e6, 4)


def test_the_ratio_is_to_the_fastest_batch_of_each_precision():
    speeds = {("ours", "default", 64): 30, ("nanoGPT", "bfloat16", 12): 20, ("nanoGPT", "bfloat16", 64): 10}
    speeds |= {("nanoGPT", "float32", 64): 5}
    rows = {}
    for key, speed in speeds.items():
        one = train.Contender(*key)
        rows[one.name] = {"program": one.program, "variant": one.variant, "per_second": speed}
    rows["nanoGPT 128 bfloat16"] = {"program": "nanoGPT", "variant": "bfloat16", "failed": "out of memory"}
    assert train.ratios_of(rows) == {"ours 64 / nanoGPT 12 bfloat16": 1.5, "ours 64 / nanoGPT 64 float32": 6.0}


def test_nanogpts_step_is_timed_after_the_warmup(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(NANOGPT)
    shape = {"vocab_size": 10, "block_size": 4}
    run = nanogpt.Training(str(tmp_path), shape, batch_size=2, steps=3, warmup=3)

    def seconds():  # the first three steps take 100 s each, later ones 2 s
        done = len(sys.modules["nanogpt_model"].steps)
        return 100 * min(done, 3) + 2 * max(done - 3, 0)

    monkeypatch.setattr(nanogpt, "time", SimpleNamespace(perf_counter=seconds))
    found = nanogpt.train(run)
    assert found == {"tokens_per_second": 2 * 4 / 2, "peak_memory": None}
    assert len(sys.modules["nanogpt_model"].steps) == 6


def test_the_speed_of_a_run_is_that_of_its_timed_steps(monkeypatch):
    def trained(command):
        settings = dict(word.split("=", 1) for word in command[2:])
        assert (settings["steps"], settings["log_every"]) == ("24", "2")
        folder = Path(settings["run_dir"])
        folder.mkdir()
        lines = [{"step": 1, "tokens_per_second": None}]
        lines += [{"step": step, "tokens_per_second": 50.0 if step > 4 else 1.0} for step in range(2, 25, 2)]
        lines[-1]["tokens_per_second"] = 10.0
        for line in lines[5:9]:  # with the last one, half of the ten timed lines
            line["tokens_per_second"] = 10.0
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "timing.json").write_text('{"peak_memory": 7}')

    monkeypatch.setattr(runs, "run_process", trained)
    assert runs.ours(SHAPES["toy"], "default", 4, [], steps=20) == {"tokens_per_second": 30.0, "peak_memory": 7}


def test_tokens_sweeps_with_one_seed_and_compares_the_best_rates_with_all(monkeypatch, capsys, tmp_path):
    ran = []

    def train_once(run_dir: Path, words: list[str]) -> dict[str, float]:
        known = dict(word.split("=", 1) for word in words)
        assert not run_dir.exists() and run_dir not in ran and run_dir.parent == tmp_path
        ran.append(run_dir)
        off = abs(float(known["optimizer.learning_rate"]) - (0.003 if "optimizer" in known else 0.02))
        return {"val_loss": 3.0 + off + int(known["seed"]) / 10 + (1 - int(known["steps"]) / 200)}

    monkeypatch.setattr(tokens, "train_once", train_once)
    cfg = tokens.Config(steps=200, shares=[1.0, 0.5], gpt2="model=gpt2_124m optimizer=adamw", out=str(tmp_path))
    tokens.main(cfg, {})
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["gpt2"] == {"share": 1.0, "learning_rate": 0.003, "losses": pytest.approx([3.1, 3.2, 3.3])}
    assert [side["learning_rate"] for side in result["default"]] == [0.02, 0.02]
    assert result["default"][1]["losses"] == pytest.approx([3.6, 3.7, 3.8])
    assert [line.split()[-1] for line in lines[-4:-1]] == ["3.3000", "reached", "missed"]
    assert len(ran) == len(cfg.gpt2_rates) + 2 + 2 * (len(cfg.default_rates) + 2)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["train", "against=nowhere"], "model.py"),
        (["train", "shapes=[2b]"], "124m"),
        (["train", "common='it"], "close the quote"),
        (["train", "part=tpu"], "gpu"),
        (["train", "part=gpu", "device=cpu"], "shapes=[toy]"),
        (["train", "variants=[fast]"], "document_mask"),
        (["train", "device=foo"], "device='foo'"),
        (["train", "device=cuda:99"], "cuda:99"),
        (["train", "batch_sizes=[0]"], "at least 1"),
        (["prepare", "sizes=[]"], "1e6"),
        (["decoed"], "decode"),
        (["decode", "shape=big"], "10m"),
        (["decode", "tokens=0"], "1.."),
        (["decode", "against=nowhere"], "model.py"),
        (["decode", "dtypes=[int4]"], "int8"),
        (["decode", "rows=1"], "at least 2"),
        (["tokenizer", "corpora=[shakespeare]"], "shakespeare:4096"),
        (["tokenizer", "contenders=[ours,bert]"], "rustbpe"),
        (["curate", "exact=0", "near=0"], "exact + near"),
        (["bulk", "batch_sizes=[]"], "batch_sizes"),
        (["engine", "clients=0"], "clients"),
        (["tokens", "shares=[2]"], "shares"),
        (["next_word", "n_prompts=0"], "n_prompts"),
        (["next_word", "top=[]"], "top"),
        (["contention", "repeats=0"], "repeats"),
        (["pretrained", "contenders=[int4]"], "int8 compiled"),
        (["pretrained", "n_prompts=99"], "20"),
    ],
)
def test_a_mistake_is_one_line(arguments, part):
    ended = capture(lambda: main(arguments))
    assert ended.status == 2 and part in ended.err and ended.err.count("\n") == 1


def test_without_a_name_the_benchmarks_are_listed():
    ended = capture(lambda: main([]))
    assert ended.status == 0 and "decode" in ended.out and not ended.err


def test_contenders_take_turns_and_a_disturbed_measurement_is_repeated(monkeypatch):
    order = []
    answers = iter([(1.0, False), (9.0, True), (2.0, False), (3.0, False), *[(8.0, True)] * measure.ATTEMPTS])
    monkeypatch.setattr(measure, "timed", lambda action: (*next(answers), action()))
    times = measure.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b", "b", "a", *["b"] * measure.ATTEMPTS]
    assert times["a"].seconds == [1.0, 3.0] and times["a"].disturbed == 0
    assert times["b"].seconds == [2.0, 8.0] and times["b"].disturbed == 1
    assert times["b"].rates(16) == {"per_second": 5.0, "lowest": 2.0, "highest": 8.0, "repeats": 2, "disturbed": 1}
