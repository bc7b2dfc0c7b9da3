"""scripts.ablations: pairs of runs at equal tokens, their figures right, a table for people and one for programs."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from conf.cli import InputError
from conf.run.runs import defaults_hash
from scripts.ablations import T95, AblationsConfig, Result, markdown, read_pairs
from tests.programs import NANO, ok, run


def test_the_interval_is_the_paired_t_interval():
    result = Result("x", "", "", a_losses=[3.0, 3.2, 3.1], b_losses=[2.9, 3.0, 3.0], a_seconds=1, b_seconds=2)
    assert result.difference == pytest.approx(-0.4 / 3)
    # differences -0.1, -0.2, -0.1: standard deviation 0.0577, over the root of 3, times t(2) = 4.303
    assert result.margin == pytest.approx(0.1434, abs=1e-4) and result.verdict == "no difference shown"
    assert Result("x", "", "", a_losses=[3.0, 3.2], b_losses=[2.0, 2.2]).verdict == "B is better"
    many = Result("x", "", "", a_losses=[0.0] * 11, b_losses=[0.0, 1.0] * 5 + [0.0])
    assert many.margin == pytest.approx(2.228 * 0.5222 / 11**0.5, abs=1e-4) and len(T95) == 30
    assert "| x | as it is | as it is | 3.1000 ± 0.1000 | 2.9667 ± 0.0577 |" in markdown([result], AblationsConfig())
    for times in (True, False):
        table = [line for line in markdown([result], AblationsConfig(times=times)).splitlines() if line[:1] == "|"]
        assert len({line.count("|") for line in table}) == 1 and table[-1].endswith(" 2.00 |") == times


def test_the_file_of_pairs_is_read_and_a_bad_line_named(tmp_path):
    assert all(len(pair) == 3 for pair in read_pairs(AblationsConfig()))
    path = tmp_path / "pairs.txt"
    path.write_text("# a comment\n\none | a=1 | b=2\ntwo | a=1\n")
    with pytest.raises(InputError, match=r"pairs.txt:4: write NAME"):
        read_pairs(AblationsConfig(pairs=str(path)))


def in_this_process(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    ended = run("train", *command[2:])
    return subprocess.CompletedProcess(command, ended.status, ended.out, ended.err)


def test_a_pair_is_trained_compared_and_not_done_again(poem, tmp_path, monkeypatch):
    monkeypatch.setattr("conf.run.runs.subprocess.run", in_this_process)
    common = shlex.join([f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO, "steps=4"])
    options = [f"common={common}", f"out={tmp_path / 'out'}", "name=small rate", "b=optimizer.learning_rate=1e-6"]
    first = ok("ablations", *options, "seeds=2")
    assert "small rate A seed 1" in first and "small rate B seed 2" in first
    [figures] = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert len(figures["a_losses"]) == 2 and figures["tokens"] == 4 * 4 * 32 and figures["difference"] > 0
    assert (tmp_path / "out" / "ablations.md").read_text() in first
    runs = sorted((tmp_path / "out" / "runs").iterdir())
    assert all(run.name.endswith(defaults_hash()) for run in runs)  # with other defaults they would be made anew
    assert ok("ablations", *options, "seeds=2") == first and len(runs) == 4
    # Other settings of every run make other runs, and none goes on from one of these.
    before = [(run / "metrics.jsonl").read_text() for run in runs]
    longer = [options[0].replace("steps=4", "steps=5"), *options[1:]]
    ok("ablations", *longer, "seeds=2")
    [figures] = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert figures["tokens"] == 5 * 4 * 32 and len(list((tmp_path / "out" / "runs").iterdir())) == 8
    assert [(run / "metrics.jsonl").read_text() for run in runs] == before
    refused = run("ablations", *options[:-1], "b=steps=5", "name=more", "seeds=2")
    assert refused.status == 2 and "make steps * batch_size equal" in refused.err
    refused = run("ablations", *options[:-1], "b=run_dir='it", "name=none", "seeds=2")
    assert refused.status == 2 and "run_dir='it" in refused.err and "close the quote" in refused.err
    refused = run("ablations", *options[:-1], "b=model.n_layer=0", "name=none", "seeds=2")
    assert refused.status == 2 and "model.n_layer=0 must be at least 1" in refused.err
