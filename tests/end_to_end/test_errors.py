"""A user's mistake ends in one clear line and status 2, damages nothing and leaves nothing half made."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys

import pytest
import torch

import sample
from model.optimization.optimizer import Optimizer
from tests.conftest import POEM
from tests.programs import NANO, finish, ok, one_line, run, snapshot, start

# Settings


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["optimizer.warmup_steps=3"], ("optimizer.warmup_steps=3", "steps=2")),
        (["model.n_head=3"], ("model.d_model=32", "model.n_head=3")),
        (["model.n_kv_head=0"], ("model.n_kv_head=0",)),
        (["model.vocab_size=7"], ("model.vocab_size=7", "tokenizer.vocab_size")),
        (["model.logit_softcap=nan"], ("model.logit_softcap=nan",)),
        (["model.rotary_base=0"], ("model.rotary_base=0", "above 0")),
        (["model.norm_eps=-1"], ("model.norm_eps=-1", "above 0")),
        (["learning_rat=1"], ("'learning_rat'", "'optimizer.learning_rate'")),
        (["rundir=x"], ("'rundir'", "'run_dir'")),
        (["--steps=3"], ("--steps=3", "write steps=3")),
        (["optimizer=adam"], ("optimizer=adam", "adamw, muon")),
        (["optimizer.learning_rate=inf"], ("optimizer.learning_rate=inf",)),
        (["optimizer.weight_decay=nan"], ("optimizer.weight_decay=nan",)),
        (["optimizer.grad_clip=nan"], ("optimizer.grad_clip=nan",)),
        (["steps=0"], ("steps=0", "at least 1")),
        (["steps=-1"], ("steps=-1", "at least 1")),
        (["steps=1e3"], ("steps=1e3", "an integer")),
        (["batch_size=0"], ("batch_size=0", "at least 1")),
        (["batch_size=100000000000000000000"], ("batch_size=100000000000000000000", "at most 1,000,000")),
        (["depth=100000000000000000000"], ("depth=100000000000000000000", "between 1 and 1,000")),
        (["model.n_layer=1000000000"], ("model.n_layer=1000000000", "between 1 and 10,000")),
        (["micro_batch=3"], ("micro_batch=3", "4 sequences")),
        (["nonfinite_limit=0"], ("nonfinite_limit=0", "at least 1")),
        (["seed=99999999999999999999"], ("seed=99999999999999999999", "64 bits")),
        (["dtype=float8"], ("dtype='float8'", "bfloat16")),
        (["device=gpu"], ("device='gpu'", "cuda")),
        (["device=meta"], ("device='meta'", "cuda")),
        (["parallel=dp"], ("parallel='dp'", "ddp")),
        (["compile=maybe"], ('compile="maybe"', "true")),
        (["resume=maybe"], ("resume='maybe'", "auto")),
        (["wandb.mode=on"], ("wandb.mode='on'", "offline")),
        (["val_fraction=2"], ("val_fraction=2", "below 1")),
        (["run_dir=null"], ("run_dir is required", "run_dir=out/first")),
        (["run_dir=caf\udce9"], ("run_dir='caf\\udce9'", "not UTF-8", "choose another name")),
        (["resume=null"], ("resume=null", "auto")),
        (["micro_batch=true"], ("micro_batch=true", "null")),
        (["save_sharded=null"], ("save_sharded=null", "auto")),
        (["compile=null"], ("compile=null", "auto")),
        (["tokenizer.path=nowhere"], ("nowhere/tokenizer.json", "check the path")),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_made(refused, base, arguments, parts):
    refused("train", *base, *arguments, parts=parts)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["temperature=-1"], ("temperature=-1", "0 (greedy)")),
        (["temperature=nan"], ("temperature=nan",)),
        (["top_k=0"], ("top_k=0", "at least 1")),
        (["top_p=2"], ("top_p=2", "between 0 and 1")),
        (["num_samples=0"], ("num_samples=0", "at least 1")),
        (["num_samples=1000000000"], ("num_samples=1000000000", "at most 1,000,000")),
        (["mode=continue", "depth=1000000"], ("depth=1000000", "at most 100")),
        (["max_new_tokens=0"], ("max_new_tokens=0", "at least 1")),
        (["mode=next_token", "top=0"], ("top=0", "at least 1")),
        (["mode=words"], ("mode='words'", "next_token")),
        (["dtype=float8"], ("dtype='float8'", "bfloat16")),
        (["device=meta"], ("device='meta'", "cpu")),
        (["prompt_file=poem.txt"], ("prompt and prompt_file", "choose one")),
        (["json=no/folder/x.json"], ("json=no/folder/x.json", "an existing folder")),
        (["json=source"], ("json=source", "Is a directory")),
        (["mode=next_token", "plot=no/x.png"], ("plot=no/x.png", "an existing folder")),
        (["mode=next_token", "plot=x.gif"], ("plot=x.gif", ".svg")),
        (["json=/proc/x.json"], ("json=/proc/x.json", "cannot be written")),
        (["checkpoint=caf\udce9"], ("checkpoint='caf\\udce9'", "not UTF-8", "rename")),
        (["plot=x.png"], ("plot= has no effect in mode=text", "mode=next_word, mode=next_token")),
        (["beside=[a]"], ("compare_prompts= has no effect in mode=text", "mode=score")),
        (["checkpoint=null"], ("checkpoint is required", "checkpoint=out/first")),
        (["mode=next_word", "top_logprobs=3"], ("top_logprobs=", "no effect in mode=next_word", "mode=text")),
        (["mode=score", "options=one"], ("options=one", "at least two different texts")),
        (["mode=score"], ("mode=score takes one of", "text=TEXT")),
        (["mode=next_word", "ignore_trailing_spaces=bits"], ("ignore_trailing_spaces=bits", "true or false")),
        (["prompts=poem.txt", "outputs=out.jsonl"], ("prompt= has no effect in mode=text prompts=FILE",)),
        (["mode=score", "prompts=poem.txt"], ("mode=score does not take prompts=FILE", "next_token")),
        (["mode=chat", "seed=1"], ("prompt= has no effect in mode=chat",)),
        (["min_new_tokens=9"], ("min_new_tokens=9", "max_new_tokens=3")),
        (["on_overflow=error", "max_new_tokens=5000"], ("max_new_tokens=5000", "on_overflow=slide")),
    ],
)
def test_a_bad_setting_of_sampling(refused, copy, starts, arguments, parts):
    start = [word for word in starts["sample"] if not (word.startswith("max_new_tokens") and "mode=" in arguments[0])]
    refused("sample", *start, *arguments, parts=parts)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["optimizer.warmup_steps=3"], ("optimizer.warmup_steps=3", "steps=1")),
        (["steps=0"], ("steps=0", "at least 1")),
        (["val_fraction=0"], ("val_fraction=0",)),
        (["dropout=1"], ("dropout=1",)),
        (["preview=-1"], ("preview=-1",)),
        (["corpus=x"], ("'corpus'", "--help")),
        (["examples=null"], ("examples is required", '"completion"')),
        (["dtype=float8"], ("dtype='float8'", "bfloat16")),
    ],
)
def test_a_bad_setting_of_fine_tuning(refused, copy, starts, arguments, parts):
    refused("finetune", *starts["finetune"], *arguments, parts=parts)


def test_all_mistakes_are_listed_at_once(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    for arguments, starts_of_lines in (
        (["stepz=1", "seed=x", "optimizer=adam"], ["unknown key 'stepz'", "seed=x", "optimizer=adam"]),
        (
            ["batch_size=0", "parallel=dp", "val_fraction=3", "model.n_head=3", "optimizer.grad_clip=-1"],
            ["parallel='dp'", "batch_size=0", "val_fraction=3", "model.d_model=32", "optimizer.grad_clip=-1"],
        ),
    ):
        ended = run("train", *base, *arguments)
        lines = ended.err.splitlines()
        assert ended.status == 2 and len(lines) == len(starts_of_lines), lines
        for start_of_line in starts_of_lines:
            assert any(line.startswith(f"error: {start_of_line}") for line in lines), lines
    assert snapshot(tmp_path) == before


# Corpora and examples


@pytest.mark.parametrize(
    "content, arguments, parts",
    [
        (None, [], ("corpus='text'", "no such file", "shakespeare")),
        ({}, [], ("corpus='text'", "no text")),
        ("", [], ("corpus='text'", "no text")),
        ("\n", [], ("corpus='text'", "curation removed all", "empty 1")),
        ("hi there", [], ("datasets/text-", "9 tokens", "add text")),
        (bytes(range(256)), [], ("text:2", "0x80", "iconv")),
        (POEM, ["include=nothing*"], ("include='nothing*'", "1 documents")),
        ({"a.txt": POEM, "b.txt": POEM}, ["val_include=*.md"], ("val_include='*.md'", "none", "'a.txt'")),
        (POEM, ["datasets=text"], ("datasets=text", "File exists", "another folder")),
        ({"a.jsonl": '{"text": "a"}\nnot json\n'}, [], ("text/a.jsonl:2", "not JSON", "column 1")),
        ({"a.jsonl": '{"body": "a"}\n'}, [], ("text/a.jsonl:1", "'text'", "text_field=", "body")),
        (None, ["corpus=[]"], ("corpus=[]",)),
        (None, ["corpus=https://example.com/a.txt"], ("https://example.com/a.txt", "check the path")),
    ],
)
def test_a_corpus_that_cannot_be_used(refused, base, tmp_path, content, arguments, parts):
    text = tmp_path / "text"
    if isinstance(content, dict):
        text.mkdir()
        for name, lines in content.items():
            (text / name).write_text(lines)
    elif content is not None:
        text.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("train", *base, "corpus=text", *arguments, parts=parts)


def test_preparation_refuses_a_corpus_that_does_not_exist(refused):
    refused("prepare", "corpus=nowhere", "datasets=datasets", parts=("corpus='nowhere'",))


@pytest.mark.parametrize(
    "content, parts",
    [
        (None, ("labels.jsonl", "No such file", "check the path")),
        ("", ("labels.jsonl", "no examples", '"completion"')),
        ('{"prompt": "a", "completion": "b"}\n{oops\n', ("labels.jsonl:2", "not JSON", "column 2")),
        ('{"prompt": "a"}\n', ("labels.jsonl:1", "fields 'prompt'", 'is {"prompt": "...", "completion": "..."}')),
        ('{"prompt": "a", "completion": 4}\n', ("labels.jsonl:1", "'completion'", "quotes")),
        ('{"prompt": "a", "completion": "b"}\n', ("val_fraction=0.1", "1 groups")),
        ("".join(f'{{"prompt": "{n}", "completion": "{"b" * 99}"}}\n' for n in range(3)), ("context=32", "shorten")),
    ],
)
def test_examples_that_cannot_be_used(refused, copy, starts, tmp_path, content, parts):
    (tmp_path / "labels.jsonl").unlink()
    if content is not None:
        (tmp_path / "labels.jsonl").write_text(content)
    refused("finetune", *starts["finetune"], parts=parts)


# Run directories


@pytest.mark.parametrize(
    "run_dir, parts",
    [("file", ("run_dir=file", "File exists")), ("file/new", ("run_dir=file/new", "Not a directory"))],
)
def test_a_run_dir_that_cannot_be_one(refused, base, copy, starts, tmp_path, run_dir, parts):
    (tmp_path / "file").write_text("mine")
    for program, arguments in (("train", base), ("finetune", starts["finetune"])):
        refused(program, *arguments, f"run_dir={run_dir}", parts=(*parts, "choose another"))


def test_a_folder_of_the_users_is_left_as_it_was(refused, base, tmp_path):
    (tmp_path / "run").mkdir()
    refused("train", *base, "corpus=nowhere", parts=("nowhere",))
    (tmp_path / "run" / "diary.txt").write_text("Dear diary")
    ended = run("train", *base, "corpus=nowhere")
    assert one_line(ended) and (tmp_path / "run" / "diary.txt").read_text() == "Dear diary"


def test_a_run_dir_that_already_holds_a_run(refused, base, copy, starts):
    for program, arguments in (("train", base), ("finetune", starts["finetune"])):
        line = refused(program, *arguments, "run_dir=source", parts=("run_dir=source", "already holds a run"))
        assert "resume=true" in line and "choose another" in line


HOLD = (
    "import fcntl, sys; lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_a_run_dir_that_another_process_uses(refused, base, copy, starts, tmp_path):
    (tmp_path / "run").mkdir()
    fresh = [("train", base), ("finetune", (*starts["finetune"], "run_dir=run"))]
    resumed = [("train", ("run_dir=source", "resume=true", "steps=9"))]
    for run_dir, attempts in (("run", fresh), ("source", resumed)):
        (tmp_path / run_dir / ".lock").touch()
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / run_dir / ".lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            try:
                assert other.stdout.readline() == b"held\n"
                for program, arguments in attempts:
                    parts = (f"run_dir={run_dir}", "in use by another process", "choose another")
                    refused(program, *arguments, parts=parts)
            finally:
                other.kill()
    ok("train", *base)  # the kernel drops the lock with its process


# Results


def test_a_full_disk_while_the_result_is_written(refused, copy, starts, monkeypatch):
    def full(path, results):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sample, "write_result", full)
    refused("sample", *starts["sample"], "json=x.json", parts=("No space left", "make room"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
        RuntimeError("x: can't allocate memory: no"),
        MemoryError("Unable to allocate 7 GiB for an array"),  # numpy's
        MemoryError(),
    ],
)
def test_memory_that_runs_out_outside_of_a_step_is_one_line(base, tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(Optimizer, "step", full)
    line = one_line(run("train", *base))
    assert line.startswith(f"error: out of memory: {str(error).partition(chr(10))[0]}") and "smaller model" in line


def test_wandbs_complaint_is_one_line_and_the_run_can_start_afterwards(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = one_line(run("train", *base, "wandb.mode=offline", "wandb.project=a/b"))
    assert "wandb.mode=offline" in line and "a/b" in line and "wandb.mode=disabled" in line
    ok("train", *base)


# Prompts


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(
    "prompt_file, parts",
    [
        ("nowhere.txt", ("prompt_file=nowhere.txt", "No such file", "check the path")),
        ("source", ("prompt_file=source", "Is a directory")),
        ("binary", ("prompt_file=binary", "not UTF-8 at byte 1")),
    ],
)
def test_a_prompt_file_that_cannot_be_read(refused, copy, starts, tmp_path, prompt_file, parts):
    (tmp_path / "binary").write_bytes(b"a\xff")
    arguments = [argument for argument in starts["sample"] if not argument.startswith("prompt=")]
    refused("sample", *arguments, f"prompt_file={prompt_file}", parts=parts)


def test_standard_input_that_is_not_text(refused, copy, starts, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xff"))
    arguments = [argument for argument in starts["sample"] if not argument.startswith("prompt=")]
    refused("sample", *arguments, parts=("standard input", "UTF-8"))


@pytest.mark.parametrize("prompt", ["", "<|endoftext|>", "Listen\n", "日本"])
def test_any_text_is_a_prompt(copy, starts, tmp_path, monkeypatch, prompt):
    monkeypatch.chdir(tmp_path)
    ended = run("sample", *starts["sample"], f"prompt={prompt}", "json=out.json")
    assert ended.status == 0 and json.loads((tmp_path / "out.json").read_text())["prompt"] == prompt
    assert ended.out.startswith(prompt)
    known = set("Listen\n") >= set(prompt)
    assert ("note: the tokenizer does not know" in ended.err) == (not known)


def test_an_empty_standard_input_is_the_empty_prompt(copy, starts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    arguments = [argument for argument in starts["sample"] if not argument.startswith("prompt=")]
    ok("sample", *arguments, "json=out.json")
    assert json.loads((tmp_path / "out.json").read_text())["prompt"] == ""


# In processes of their own


def test_a_real_process_ends_with_the_line_and_status_2(tmp_path):
    command = ["train.py", "corpus=It's/no where=1e3", *NANO, f"datasets={tmp_path / 'datasets'}"]
    ended = finish(start(*command, f"run_dir={tmp_path / 'run'}"))
    assert '"It\'s/no where=1e3"' in one_line(ended) and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_paths_and_prompts_survive_the_command_line_byte_for_byte(tmp_path, poem):
    home = tmp_path / "home"
    (home / "It's my notes (2024), a=b").mkdir(parents=True)
    poem.rename(home / "It's my notes (2024), a=b" / "poem.txt")
    folders = ["corpus=~/It's my notes (2024), a=b", "datasets=~/data sets", "run_dir=~/dir with spaces"]
    ended = finish(start("train.py", *folders, *NANO, "steps=1", HOME=str(home)))
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in home.glob("[!.]*")) == [
        "It's my notes (2024), a=b",
        "data sets",
        "dir with spaces",
    ]
    prompts = ["It's 1e3, a=b (2024) [x] café wow! ", "Listen to\nyour ${HOME} \\n 'heart'\n"]
    running = [
        start(
            "sample.py", "checkpoint=~/dir with spaces", f"prompt={prompt}", f"json=~/out {number}.json",
            "max_new_tokens=3", "device=cpu", HOME=str(home), PYTHONIOENCODING=encoding,
        )
        for number, (prompt, encoding) in enumerate(zip(prompts, ("ascii", "utf-8"), strict=True))
    ]  # fmt: skip
    for number, (prompt, process) in enumerate(zip(prompts, running, strict=True)):
        ended = finish(process)
        assert ended.status == 0, ended.err
        assert json.loads((home / f"out {number}.json").read_bytes())["prompt"] == prompt
        shown = prompt.replace("é", "\\xe9")  # a terminal that is not UTF-8 is no reason to fail
        assert ended.out.startswith(shown)
