"""Which settings a resumed run uses: those it was started with, under their present names."""

from __future__ import annotations

import shutil

import pytest
import yaml

from conf.cli.renamed import RENAMED
from conf.run import resume
from tests.programs import NANO, ok, one_line, run


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


def test_a_misspelt_run_is_answered_with_a_similar_one(finished):
    (finished.parent / "ruin").mkdir()  # no run
    line = one_line(run("train", f"run_dir={finished.parent / 'rum'}", "resume=true"))
    assert line.endswith(f"did you mean run_dir={finished}?")
    assert "did you mean" not in one_line(run("train", f"run_dir={finished.parent / 'other'}", "resume=true"))


def test_each_setting_that_may_not_change_is_named_with_both_values(finished):
    ended = run("train", f"run_dir={finished}", "resume=true", "steps=2", "batch_size=8", "optimizer.learning_rate=1")
    lines = ended.err.splitlines()
    assert ended.status == 2 and len(lines) == 2
    assert "batch_size=8, but the run in" in lines[0] and "has 4" in lines[0]
    assert "optimizer.learning_rate=1.0, but" in lines[1] and "has 0.02" in lines[1]
    line = one_line(run("train", f"run_dir={finished}", "resume=true", "model=small"))  # as it was typed, in one line
    assert line.startswith("error: model= sets model.n_layer=8, ") and " has 1, " in line, line
    arguments = ("document_mask=true", "val_include=null", "val_include=a")
    lines = run("train", f"run_dir={finished}", "resume=true", "steps=2", *arguments).err.splitlines()
    assert "document_mask=true, but" in lines[0] and "has false" in lines[0] and "has null" in lines[1], lines


def test_a_corpus_that_moved_is_known_by_its_content(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok("train", *base)
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "poem.txt").rename(tmp_path / "moved" / "poem.txt")
    assert "no such file" in one_line(run("train", "run_dir=run", "resume=true", "steps=3"))
    assert "at step 2" in ok("train", "run_dir=run", "resume=true", "steps=3", "corpus=moved/poem.txt")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["corpus"] == "moved/poem.txt"
    moved.write_text(moved.read_text() + "more")
    before = (tmp_path / "run" / "config.yaml").read_text()
    for same in ("corpus=moved/poem.txt", f"corpus={moved}"):
        assert "data fingerprint" in one_line(run("train", "run_dir=run", "resume=true", "steps=4", same))
    assert (tmp_path / "run" / "config.yaml").read_text() == before


@pytest.mark.slow
def test_examples_and_a_tokenizer_that_moved_are_known_by_their_content(copy, starts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok("finetune", *starts["finetune"])
    (tmp_path / "labels.jsonl").rename(tmp_path / "moved.jsonl")
    again = ("finetune", "run_dir=new", "resume=true")
    assert "labels.jsonl" in one_line(run(*again, "steps=2"))
    assert "at step 1" in ok(*again, "steps=2", "examples=moved.jsonl")
    (tmp_path / "source").rename(tmp_path / "base")
    assert "give its new path with checkpoint=" in one_line(run(*again, "steps=3"))
    other = ["train", *(word for word in starts["train"] if not word.startswith("checkpoint=")), "run_dir=other"]
    ok(*other, *NANO, "batch_size=2", "tokenizer=byte")
    assert "another model or tokenizer" in one_line(run(*again, "steps=3", "checkpoint=other"))
    assert "at step 2" in ok(*again, "steps=3", "checkpoint=base")
    assert "has null" in one_line(run(*again, "steps=3", "val_examples=moved.jsonl"))
    (tmp_path / "moved.jsonl").write_text("".join(f'{{"prompt": "{n}", "completion": "o"}}\n' for n in range(4)))
    assert "data fingerprint" in one_line(run(*again, "steps=3"))

    (tmp_path / "base").rename(tmp_path / "source")
    shutil.copytree(copy / "tokenizer", tmp_path / "one")
    words = [word for word in starts["train"] if not word.startswith("checkpoint=")]
    ok("train", *words, *NANO, "batch_size=2", "run_dir=own", "tokenizer.path=one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert "at step 1" in ok("train", "run_dir=own", "resume=true", "steps=2", "tokenizer.path=two")
    assert "tokenizer.path=null" in one_line(run("train", "run_dir=own", "resume=true", "tokenizer.path=null"))


def test_a_run_of_the_other_program_is_named(finished, copy, starts, tmp_path):
    ok("finetune", *starts["finetune"])
    for program, run_dir, other in (("train", "new", "finetune"), ("finetune", "run", "train")):
        for resume_setting in ("true", "auto"):
            line = one_line(run(program, f"run_dir={run_dir}", f"resume={resume_setting}", *starts[program][3:4]))
            assert f"is a run of {other}.py" in line
            assert line.endswith(f"python {other}.py run_dir={run_dir} resume=true")


def test_a_restart_by_torchrun_belongs_to_the_job_that_began_the_run(tmp_path, monkeypatch):
    (tmp_path / resume.JOB_FILE).write_text("job 1")
    for job, restarts, expected in (("job 1", "1", True), ("job 1", "0", False), ("job 2", "1", False)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        assert resume.is_restart(tmp_path) is expected
