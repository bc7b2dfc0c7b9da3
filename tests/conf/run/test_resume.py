"""Which settings a resumed run uses: those it was started with, under their present names."""

from __future__ import annotations

import shutil

import pytest
import yaml

from conf.cli.renamed import RENAMED
from conf.run import resume
from tests.programs import ok, one_line, run


@pytest.fixture
def finished(trained, tmp_path, monkeypatch):
    """The folder of a run of one step, to be changed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_the_version_before_the_new_names_resumes(finished):
    path = finished / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for old, new in RENAMED.items():
        *parents, last = new.split(".")
        section = config[parents[0]] if parents else config
        if last in section:
            section[old.rpartition(".")[2]] = section.pop(last)
    config["model"] |= {"ngram": 0, "ngram_contexts": 0}
    path.write_text(yaml.safe_dump(config))
    assert "at step 1" in ok("train", f"run_dir={finished}", "resume=true", "steps=2", "optimizer.clip=1.0")
    assert yaml.safe_load(path.read_text())["weight_average"] == "none"
    config["model"]["ngram"] = 3
    path.write_text(yaml.safe_dump(config))
    assert "model.ngram is set" in one_line(run("train", f"run_dir={finished}", "resume=true", "steps=3"))


def test_each_setting_that_may_not_change_is_named_with_both_values(finished):
    ended = run("train", f"run_dir={finished}", "resume=true", "steps=2", "batch_size=8", "optimizer.learning_rate=1")
    lines = ended.err.splitlines()
    assert ended.status == 2 and len(lines) == 2
    assert "batch_size=8, but the run in" in lines[0] and "has 4" in lines[0]
    assert "optimizer.learning_rate=1.0, but" in lines[1] and "has 0.02" in lines[1]


def test_a_restart_by_torchrun_belongs_to_the_job_that_began_the_run(tmp_path, monkeypatch):
    (tmp_path / resume.JOB_FILE).write_text("job 1")
    for job, restarts, expected in (("job 1", "1", True), ("job 1", "0", False), ("job 2", "1", False)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        assert resume.is_restart(tmp_path) is expected
