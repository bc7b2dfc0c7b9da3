"""Bulk sampling: a run that is killed and resumed writes each line once, and the same file byte for byte."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest

from data.labelled.prompts import Prompt
from model import InputError
from model.bulk import SETTINGS, Request, continue_prompts, request_reader
from model.inference.sampling import SamplingConfig
from sample import load
from tests.model.inference.helpers import byte_model
from tests.programs import ok, one_line, run, start

UNKNOWN = "<|unknown|>"


def write_prompts(path, count, *, seed=0):
    """Prompts of many lengths, some with fields of their own."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        fields = {"id": f"q{number}", "prompt": "Listen to your heart. "[: rng.randint(0, 22)]}
        if rng.random() < 0.3:
            fields |= rng.choice(
                [{"temperature": 0}, {"top_k": 3, "seed": number}, {"stop": "e"}, {"max_new_tokens": 30}]
            )
        if rng.random() < 0.1:
            fields["num_samples"] = 3
        lines.append(json.dumps(fields))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [json.loads(line) for line in lines]


def arguments(trained, prompts, outputs, **more):
    options = {"checkpoint": trained, "prompts": prompts, "outputs": outputs, "batch_size": 8, "max_new_tokens": 12}
    options |= {"device": "cpu", "dtype": "float32", **more}
    return [f"{name}={value}" for name, value in options.items()]


def results(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stop_at(process, partial, size, how):
    """Sends a signal as soon as the file of results reaches a size; returns exit status, stdout and stderr."""
    while process.poll() is None and (not partial.exists() or partial.stat().st_size < size):
        time.sleep(0.001)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def uninterrupted_and_stopped(trained, folder, *, count, stops, **more):
    """The results of an uninterrupted run, and of one stopped by a signal at each (fraction of its results, signal)."""
    write_prompts(folder / "prompts.jsonl", count)
    ok("sample", *arguments(trained, folder / "prompts.jsonl", folder / "whole.jsonl", **more))
    size = (folder / "whole.jsonl").stat().st_size
    options = arguments(trained, folder / "prompts.jsonl", folder / "stopped.jsonl", **more)
    for fraction, how in stops:
        partial = folder / "stopped.jsonl.partial"
        status, out, err = stop_at(start("sample.py", *options), partial, size * fraction, how)
        assert not (folder / "stopped.jsonl").exists() and partial.stat().st_size > 0
        if how == signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 0 and "Traceback" not in err and "run the same command to resume" in out
    ok("sample", *options)
    return (folder / "whole.jsonl").read_bytes(), (folder / "stopped.jsonl").read_bytes()


@pytest.mark.slow
def test_stopped_and_resumed_it_writes_the_same_bytes(trained, tmp_path):
    stops = [(0.2, signal.SIGTERM), (0.4, signal.SIGKILL), (0.6, signal.SIGINT)]
    whole, stopped = uninterrupted_and_stopped(trained, tmp_path, count=200, stops=stops)
    assert stopped == whole
    records = results(tmp_path / "prompts.jsonl")
    expected = [(record["id"], k) for record in records for k in range(record.get("num_samples", 1))]
    assert [(line["id"], line.get("sample", 0)) for line in results(tmp_path / "stopped.jsonl")] == expected


@pytest.mark.slow
def test_ten_thousand_prompts_killed_again_and_again(trained, tmp_path):
    rng = random.Random(0)
    stops = [(fraction, signal.SIGKILL) for fraction in sorted(rng.uniform(0, 0.95) for _ in range(8))]
    whole, stopped = uninterrupted_and_stopped(trained, tmp_path, count=10_000, stops=stops, batch_size=64)
    assert stopped == whole


def test_a_result_has_the_fields_of_its_prompt_and_the_completion(trained, tmp_path):
    records = write_prompts(tmp_path / "prompts.jsonl", 40)
    out = ok("sample", *arguments(trained, tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"))
    lines = results(tmp_path / "out.jsonl")
    assert f"{len(lines)} results" in out and "tokens/s" in out
    lm = load(trained, device="cpu")
    for line in lines:
        assert line.items() >= records[line["index"]].items()
        if UNKNOWN not in line["text"]:
            written = lm.tokenizer.decode(line["tokens"])  # includes the token that completed a stop string
            assert line["text"] == (written.partition(line["stop"])[0] if line["ended"] == "stop" else written)
        assert len(line["tokens"]) == len(line["log_probabilities"]) <= line.get("max_new_tokens", 12)
        assert ("sample" in line) == ("num_samples" in line)
        if line.get("temperature") == 0:
            assert set(line["log_probabilities"]) <= {0.0}
    samples = [tuple(line["tokens"]) for line in lines if "sample" in line and line.get("temperature") != 0]
    assert len(set(samples)) > 0.9 * len(samples) > 0
    again = ok("sample", *arguments(trained, tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"))
    assert "nothing to do" in again
    ok("sample", *arguments(trained, tmp_path / "prompts.jsonl", tmp_path / "one.jsonl", batch_size=1))
    assert [line["tokens"] for line in results(tmp_path / "one.jsonl")] == [line["tokens"] for line in lines]


def test_neighbours_and_padding_do_not_change_a_row(trained):
    lm = load(trained, device="cpu")
    prompts = [Prompt(i, 0, "Listen to your "[:length], {}) for i, length in enumerate((3, 9, 12, 14, 14))]
    requests = [Request(max_new_tokens=length, seed=length) for length in (5, 9, 7, 20, 3)]
    together = continue_prompts(lm, prompts, requests, rows=5)
    alone = continue_prompts(lm, prompts[2:4], requests[2:4], rows=8)
    for one, other in zip(alone, together[2:4], strict=True):
        assert all(one[name] == other[name] for name in ("tokens", "text", "ended"))
        assert one["log_probabilities"] == pytest.approx(other["log_probabilities"], abs=1e-5)


def test_wrong_lines_are_reported_before_anything_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        '{"prompt": "a", "max_tokens": 3}',
        "",
        '{"prompt": "b", "temperature": "hot", "top_k": 0}',
        '{"prompt": "c"}',
    ]
    lines.append('{"prompt": "d", "force_words": "Listen to your heart"}')
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    ended = run("sample", *arguments(trained, "prompts.jsonl", "out.jsonl"))
    assert ended.status == 2 and ended.err.splitlines() == [
        "error: prompts.jsonl:1: unknown field 'max_tokens'; did you mean 'max_new_tokens'?",
        'error: prompts.jsonl:3: temperature="hot" does not fit: it takes a number',
        "error: prompts.jsonl:3: top_k=0 must be at least 1 (null: no limit)",
        "error: prompts.jsonl:5: force_words=['Listen to your heart'] needs 20 tokens; raise max_new_tokens=12",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_resuming_with_other_settings_or_prompts_is_refused(trained, tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", 20)
    ok("sample", *arguments(trained, tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"))
    options = arguments(trained, tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", top_p=0.5)
    assert "top_p=null (now 0.5)" in one_line(run("sample", *options))
    write_prompts(tmp_path / "prompts.jsonl", 20, seed=1)
    options = arguments(trained, tmp_path / "prompts.jsonl", tmp_path / "out.jsonl")
    assert 'prompts="sha256 ' in one_line(run("sample", *options))


@pytest.mark.parametrize(
    "fields, parts",
    [
        ({"temperature": True}, ["temperature=true", "a number"]),
        ({"top_k": 2.5}, ["top_k=2.5", "an integer or null"]),
        ({"seed": 2**64}, [f"seed={2**64}", "an integer"]),
        ({"min_new_tokens": 300}, ["max_new_tokens=200 must be at least 300 (min_new_tokens)"]),
        ({"stop": ["a", 3]}, ['stop=["a", 3]', "a list of strings"]),
        ({"max_new_tokens": 0, "top_p": 2}, ["max_new_tokens=0", "top_p=2"]),
        ({"Temperature": 1}, ["did you mean 'temperature'?"]),
        ({"top-k": 1, "maxNewTokens": 3}, ["did you mean 'top_k'?", "did you mean 'max_new_tokens'?"]),
        ({"banned": "x", "stop": 3}, ["did you mean 'bad_words'?", "stop=3 does not fit: it takes a list of strings"]),
    ],
)
def test_wrong_fields_are_named(fields, parts):
    with pytest.raises(InputError) as caught:
        Request().changed(fields)
    assert all(part in " ".join(caught.value.args) for part in parts)


def test_fields_replace_the_defaults_and_unknown_ones_are_ignored():
    default = Request(SamplingConfig(temperature=0.5, top_k=9), max_new_tokens=7, seed=3)
    assert default.changed({"id": 4, "completion": "x"}) is default
    fields = {"temperature": 1, "num_samples": 2, "seed": 5}
    assert default.changed(fields) == Request(SamplingConfig(top_k=9), max_new_tokens=7, seed=5, num_samples=2)
    assert isinstance(default.changed(fields).sampling.temperature, float)


@pytest.mark.parametrize("name", [*SETTINGS, "id", "speed"])
def test_null_means_that_a_field_is_absent(name):
    default = Request(SamplingConfig(temperature=0.5, top_k=9), max_new_tokens=7, seed=3)
    assert default.changed({name: None}) is default


def test_fields_that_look_like_a_setting_are_noted_once():
    notes = []
    read = request_reader(byte_model(), Request(), note=notes.append)
    assert read({"speed": 3, "stops": 1, "id": 2}) == read({"speed": 4}) == Request()
    copied = "is not a setting and only copied to the results; did you mean"
    assert notes == [f"field 'speed' {copied} 'seed'?", f"field 'stops' {copied} 'stop'?"]
