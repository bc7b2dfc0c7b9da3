"""scripts.tradeoff: a line and a point per run; what is missing is named."""

from __future__ import annotations

import json

from tests.programs import ok, one_line, run


def write(run_dir, **changes) -> None:
    row = {"accuracy": 0.8, "low": 0.7, "high": 0.9}
    content = {
        "results": [{"name": "fine-tuned", **row}, {"name": "before", **row, "accuracy": 0.2}],
        "forgetting": {"difference": 0.1, "low": 0.05, "high": 0.15, "before": 1.5, "after": 1.6, "documents": 9},
    }
    run_dir.mkdir()
    (run_dir / "comparison.json").write_text(json.dumps(content | changes))


def test_runs_are_listed_and_drawn(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    out = ok("tradeoff", f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"plot={tmp_path / 'p.png'}")
    assert "a: accuracy 80.0%, +0.1000 bits/byte forgotten (+0.0500 to +0.1500)" in out and "\nb: " in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path):
    assert "comparison.json is missing" in one_line(run("tradeoff", f"runs={tmp_path}"))
    write(tmp_path / "a", forgetting=None)
    assert "has no forgetting" in one_line(run("tradeoff", f"runs={tmp_path / 'a'}"))
    assert "runs is required" in one_line(run("tradeoff"))


def test_runs_that_start_from_different_figures_are_refused(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", forgetting={"difference": 0.1, "low": 0.05, "high": 0.15, "before": 1.7, "after": 1.8})
    error = one_line(run("tradeoff", f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"plot={tmp_path / 'p.png'}"))
    assert "differ before fine-tuning: choose runs with the same checkpoint" in error
