"""scripts.ablations: pairs of runs at equal tokens, correct figures, a table and JSON."""

from __future__ import annotations

import json

import pytest

from conf.cli import InputError
from scripts import ablations
from scripts.ablations import T95, AblationsConfig, Result, markdown, read_pairs
from tests.programs import ok, run


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


def test_a_malformed_line_of_the_pairs_is_named(tmp_path):
    assert all(len(pair) == 3 for pair in read_pairs(AblationsConfig()))
    path = tmp_path / "pairs.txt"
    path.write_text("# a comment\n\none | a=1 | b=2\ntwo | a=1\n")
    with pytest.raises(InputError, match=r"pairs.txt:4: write NAME"):
        read_pairs(AblationsConfig(pairs=str(path)))


def test_a_pair_is_compared_at_equal_tokens_with_every_seed(tmp_path, monkeypatch):
    runs = []

    def train_once(run_dir, settings):
        runs.append((run_dir, settings))
        known = dict(word.split("=") for word in settings)
        tokens, slow = 100 * int(known["steps"]), "optimizer.learning_rate" in known
        return {"val_loss": int(known["seed"]) + slow, "tokens": tokens, "elapsed_seconds": 1 + slow}

    monkeypatch.setattr(ablations, "train_once", train_once)
    (tmp_path / "out").mkdir()
    options = [f"out={tmp_path / 'out'}", "name=small rate", "b=optimizer.learning_rate=1e-6", "seeds=2"]
    printed = ok("ablations", *options, "common=steps=4")
    assert "small rate A seed 1" in printed and "small rate B seed 2" in printed
    [figures] = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert figures["a_losses"] == [1, 2] and figures["b_losses"] == [2, 3] and figures["tokens"] == 400
    assert figures["difference"] == 1 and figures["b_seconds"] == 2 * figures["a_seconds"] == 2
    assert (tmp_path / "out" / "ablations.md").read_text() in printed
    # The same settings are the same run; other settings of every run make it another.
    ok("ablations", *options, "common=steps=4")
    ok("ablations", *options, "common=steps=5")
    assert runs[:4] == runs[4:8] and len({run_dir for run_dir, _ in runs}) == 8
    refused = run("ablations", *options[:1], "name=more", "b=steps=5", "common=steps=4", "seeds=2")
    assert refused.status == 2 and "make steps * batch_size equal" in refused.err
    refused = run("ablations", *options[:1], "name=none", "b=run_dir='it", "common=steps=4", "seeds=2")
    assert refused.status == 2 and "run_dir='it" in refused.err and "close the quote" in refused.err
