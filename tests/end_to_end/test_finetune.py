"""finetune.py: the audit, what is printed and written, early stopping, what is trained, resuming, two ranks."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import torch

import finetune
from data.labelled.templates import Task
from model.checkpoints import reader
from model.distributed.stop_signal import StopSignal
from tests.programs import finish, ok, run, snapshot, start
from tests.toy_training import digest, lines, weights

WORDS = {"long": ["listen", "nobody"], "short": ["gut", "wind"]}
TEMPLATE = "prompt_template={text};"


def write_table(path: Path, count: int, *, noise: float = 0.0) -> Path:
    """A CSV of texts with quoted line breaks and quotes, and their labels; a share of these is drawn at random."""
    draw = random.Random(1)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for number in range(count):
            label = draw.choice(list(WORDS))
            text = f"{draw.choice(WORDS[label])},\n{number} to your"
            table.writerow([text, draw.choice(list(WORDS)) if draw.random() < noise else label])
    return path


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "own.csv", 240)


@pytest.fixture
def options(trained, table):
    """The arguments of a run of four steps, without run_dir."""
    return [
        f"checkpoint={trained}", f"datasets={trained.parent / 'datasets'}", f"examples={table}", TEMPLATE,
        "device=cpu", "dtype=float32", "batch_size=8", "steps=4", "eval_every=2", "val_fraction=0.3",
    ]  # fmt: skip


def comparison(run_dir: Path) -> dict:
    return json.loads((run_dir / "comparison.json").read_text(encoding="utf-8"))


def names(content: dict) -> list[str]:
    return [row["name"] for row in content["results"]]


def hint(out: str) -> str:
    """The last line: the only command that uses the checkpoint."""
    assert out.count("python sample.py") == 1
    return out.splitlines()[-1]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    calls = iter(range(1, 10_000))
    monkeypatch.setattr(StopSignal, "agreed", lambda self: next(calls) == step)


@pytest.mark.slow
def test_a_table_with_line_breaks_is_audited_trained_on_and_compared(options, tmp_path, real_plots):
    run_dir = tmp_path / "tuned"
    out = ok(
        "finetune", *options, "steps=6", "optimizer.learning_rate=0.01", 'probes=["Listen to"]', f"run_dir={run_dir}"
    )
    for part in (
        "with loss", "[", "exact duplicates", "near duplicates", "held out", "long", "bag of words",
        "most common label", "fine-tuned against before", "true label", "calibration error", "forgetting",
        "Next words after 'Listen to'", "macro-F1", "classify texts:",
    ):  # fmt: skip
        assert part in out, part
    evaluations = [line for line in out.splitlines() if "validation loss" in line and "macro-F1" in line]
    assert evaluations and not any("bits/byte" in line for line in evaluations)  # of labels they mean nothing
    held_out = [json.loads(line) for line in (run_dir / "held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == 72 and all("\n" in row["text"] and row["label"] in WORDS for row in held_out)

    content = comparison(run_dir)
    assert names(content) == ["fine-tuned", "before", "bag of words", "most common label"]
    assert content["examples"] == 72 == sum(map(sum, content["confusion"]))
    assert {row["a"] for row in content["differences"]} == set(names(content)[1:])
    assert content["forgetting"]["after"] > 0 and content["probes"][0]["words"]
    assert (run_dir / "answers.png").read_bytes().startswith(b"\x89PNG")
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    for step in reader.steps(run_dir):
        task = Task.load(step)
        assert task is not None and task.labels == ("long", "short") and task.prompt == "{text};"


def test_evaluations_answer_without_dropout(options, tmp_path, monkeypatch):
    """The answers of the model in training are those of the weights that are saved."""
    found = []
    original = finetune.answer

    def recorded(*arguments, **keywords):
        found.append(original(*arguments, **keywords))
        return found[-1]

    monkeypatch.setattr(finetune, "answer", recorded)
    ok("finetune", *options, "dropout=0.8", "steps=2", f"run_dir={tmp_path / 'tuned'}")
    training, tuned, _ = found
    assert training.scores == pytest.approx(tuned.scores, abs=1e-4)


@pytest.mark.slow
def test_a_dry_run_and_a_refused_set_leave_nothing(options, table, tmp_path):
    before = snapshot(tmp_path)
    assert "tok/s" in ok("finetune", *options, "dry_run=true")
    table_of_one = tmp_path / "one label.csv"
    table_of_one.write_text("text,label\n" + "".join(f"{number} to,short\n" for number in range(30)))
    before = snapshot(tmp_path)
    for arguments, part in (
        ([f"examples={table_of_one}"], "all training examples have the label 'short'"),
        (["select=exact_match"], "use loss or accuracy or macro_f1"),
        (["select=accuracy", "answer_limit=0"], "use loss"),
        (["trainable=blocks.7"], "trainable=blocks.7 names no parameter"),
    ):
        ended = run("finetune", *options, *arguments, f"run_dir={tmp_path / 'refused'}")
        assert ended.status == 2 and part in ended.err and "Traceback" not in ended.err, ended.err
        assert snapshot(tmp_path) == before


def test_a_figure_that_free_text_does_not_have_is_refused_before_training(trained, tmp_path):
    rows = [{"prompt": f"{number} to", "completion": f" your {number}"} for number in range(40)]
    examples = tmp_path / "free.jsonl"
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    free = [f"checkpoint={trained}", f"examples={examples}", "device=cpu", f"run_dir={tmp_path / 'tuned'}"]
    ended = run("finetune", *free, "select=accuracy")
    assert ended.status == 2 and ended.err.splitlines() == [
        "error: select=accuracy is not measured on these examples (free text, no label set); use loss or exact_match"
    ]
    assert not (tmp_path / "tuned").exists()
    out = ok("finetune", *free, "select=exact_match", "steps=2", "batch_size=4")
    assert "exact match" in out and "note: forgetting is not measured" in out
    assert "stopped" in comparison(tmp_path / "tuned")["results"][0]
    assert hint(out) == f'sample from it:  python sample.py checkpoint={tmp_path / "tuned" / "best"} prompt="..."'


@pytest.mark.parametrize("select", ["loss", "accuracy"])
def test_a_run_that_overfits_ends_early_and_keeps_the_best_step(options, tmp_path, select):
    noisy, run_dir = write_table(tmp_path / "noisy.csv", 40, noise=1.0), tmp_path / "tuned"
    options = [*options, f"examples={noisy}", "optimizer.learning_rate=0.01", f"select={select}", "compare=false"]
    out = ok("finetune", *options, "steps=200", "eval_every=5", "patience=3", f"run_dir={run_dir}")
    assert f"ended early: no better {select} in 3 evaluations" in out and f"(best {select} so far)" in out
    key, sign = ("val_loss", 1) if select == "loss" else (select, -1)
    scores = {line["step"]: sign * line[key] for line in lines(run_dir) if key in line}
    best = min(scores, key=lambda step: (scores[step], step))  # the first one of equals
    assert reader.find(run_dir / "best").step == best == max(scores) - 15
    assert max(scores) < 200 and reader.find(run_dir).step == max(scores)

    again = [f"run_dir={run_dir}", "resume=true"]
    assert "ended early; raise patience to continue" in ok("finetune", *again)
    assert lines(run_dir)[-1]["step"] == max(scores)
    assert f"at step {max(scores)}" in ok("finetune", *again, "patience=4")
    assert lines(run_dir)[-1]["step"] > max(scores)


def test_only_what_is_named_is_trained(trained, options, tmp_path):
    run_dir = tmp_path / "tuned"
    out = ok("finetune", *options, "trainable=[*.mlp.*, head]", "compare=false", f"run_dir={run_dir}")
    before, after = weights(trained), weights(run_dir)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".mlp." in name or name.startswith("lm_head.") for name in changed)
    trained_count, total = (sum(before[name].numel() for name in names) for names in (changed, before))
    assert f"are trained ({trained_count / total:.1%})" in out


@pytest.mark.slow
def test_a_stopped_run_compares_nothing_and_ends_as_a_straight_one(options, tmp_path, monkeypatch):
    options = [*options, "trainable=blocks.-1:", "packing=packed", "dropout=0.1", "steps=6", "eval_every=4"]
    ok("finetune", *options, f"run_dir={tmp_path / 'straight'}")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        out = ok("finetune", *options, "from_scratch=true", f"run_dir={tmp_path / 'halved'}")
    assert "stopped after step 3 of 6" in out and "bag of words" not in out and "from random weights" not in out
    assert Task.load(reader.find(tmp_path / "halved").directory) is not None  # though nothing was evaluated
    ok("finetune", f"run_dir={tmp_path / 'halved'}", "resume=true", "from_scratch=false")
    assert digest(tmp_path / "halved") == digest(tmp_path / "straight")
    one, other = (comparison(tmp_path / name)["results"] for name in ("straight", "halved"))
    assert one == other


def test_a_resumed_run_keeps_its_temperature_until_it_evaluates(options, tmp_path, monkeypatch):
    run_dir = tmp_path / "tuned"
    stop_at(monkeypatch, 2)
    ok("finetune", *options, f"run_dir={run_dir}", "steps=6")
    stop_at(monkeypatch, 1)
    ok("finetune", f"run_dir={run_dir}", "resume=true")
    second, third = (Task.load(run_dir / f"step_{step:08d}").temperature for step in (2, 3))
    assert second == third != 1.0


def test_conversations_have_loss_on_every_answer(trained, tmp_path):
    chat = tmp_path / "chat.jsonl"
    with chat.open("w") as file:
        for number in range(30):
            turns = [("user", f"{number}"), ("assistant", "to"), ("user", "y"), ("assistant", "you")]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    roles = {"user": ["", ","], "assistant": ["", "<|endoftext|>"]}
    (tmp_path / "roles.json").write_text(json.dumps({"roles": roles}))
    options = [f"checkpoint={trained}", f"examples={chat}", "device=cpu", "steps=2", "batch_size=4"]
    out = ok("finetune", *options, f"chat_template={tmp_path / 'roles.json'}", f"run_dir={tmp_path / 'own'}")
    assert "[t|o|<|endoftext|>]" in out and "[y|o|u|<|endoftext|>]" in out and "exact match" in out
    assert hint(out).startswith("chat with it:") and hint(out).endswith("mode=chat")
    task = Task.load(reader.find(tmp_path / "own").directory)
    assert task is not None and task.chat is not None and task.chat.roles["user"] == ("", ",")
    # "Assistant:" fills most of this context, so the beginnings of the chats are cut.
    out = ok("finetune", *options, "chat_template=plain", f"run_dir={tmp_path / 'plain'}", "compare=false")
    assert "prompts truncated on the left" in out and "y|o|u|<|endoftext|>]" in out


def test_the_same_network_from_scratch_is_compared_too(options, tmp_path):
    out = ok("finetune", *options, "from_scratch=true", "trainable=blocks.-1:", f"run_dir={tmp_path / 'tuned'}")
    assert "The same network, trained from random weights" in out and hint(out).startswith("classify texts:")
    assert names(comparison(tmp_path / "tuned"))[:3] == ["fine-tuned", "before", "from scratch"]
    scratch, tuned = weights(tmp_path / "tuned" / "from_scratch"), weights(tmp_path / "tuned")
    assert not any(torch.equal(scratch[name], tuned[name]) for name in scratch if scratch[name].ndim == 2)


def test_a_comparison_is_with_the_checkpoint_that_was_named(options, trained, tmp_path):
    """Not with the best step of its run."""
    source = tmp_path / "source"
    ok("finetune", *options, "optimizer.learning_rate=0.03", "compare=false", f"run_dir={source}")
    (source / "best").write_text(reader.steps(source)[0].name + "\n")
    newest = f"checkpoint={source}"
    ok("finetune", *options, newest, "steps=1", "optimizer.learning_rate=1e-9", f"run_dir={tmp_path / 'again'}")
    tuned, before, *_ = comparison(tmp_path / "again")["results"]
    assert tuned["calibration_error"] == pytest.approx(before["calibration_error"], abs=1e-5)


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_with_the_best_run_first(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    swept = ["optimizer.learning_rate=1e-6,0.01,0", "run_dir='sweep-${optimizer.learning_rate}'", "compare=false"]
    monkeypatch.setattr("sys.argv", ["finetune.py"])
    ended = run("finetune", "-m", *(option for option in options if option != TEMPLATE), *swept)
    assert ended.status == 2 and "learning_rate=0.0 must be above 0" in ended.err  # of one job only
    _, columns, *rows = ended.out[ended.out.index("2 jobs, the best loss first") :].splitlines()
    assert columns.split()[:2] == ["run_dir", "optimizer.learning_rate"] and "accuracy" in columns
    assert [row.split()[0] for row in rows] == ["sweep-0.01", "sweep-1e-06"]
    for row in rows:
        run_dir, _, step, loss, *_ = row.split()
        found = reader.find(Path(run_dir) / "best")
        assert (int(step), float(loss)) == (found.step, round(found.manifest["val_loss"], 4))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_process(options, tmp_path, parallel):
    options = [*options, "trainable=blocks.-1:", "packing=packed", "select=accuracy", "log_every=1"]
    ok("finetune", *options, f"run_dir={tmp_path / 'one'}")
    two = [*options, f"parallel={parallel}", f"run_dir={tmp_path / 'two'}"]
    ended = finish(start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "finetune.py", *two))
    assert ended.status == 0, ended.err
    assert ended.out.count("fine-tuned against before") == 1
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    keys = ("train_loss", "val_loss", "accuracy", "macro_f1")
    for ours, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert {key: ours.get(key) for key in keys} == pytest.approx({key: theirs.get(key) for key in keys}, abs=1e-5)
