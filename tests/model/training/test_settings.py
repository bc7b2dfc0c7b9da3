"""Resolving `auto`: when a run is compiled, and what its config keeps."""

from __future__ import annotations

from model.device import Compute
from model.distributed import parallel
from model.training import settings
from model.training.settings import LoopConfig, resolve_compile
from tests.families import make
from tests.programs import ok, run


def test_compile_auto_compiles_long_runs_on_a_cpu(monkeypatch):
    model, one = make("modern"), parallel.World()  # 3 layers, 64 wide, context 48: some 2e6 FLOPs a token
    resolved = Compute.resolve("cpu", compile="auto")
    monkeypatch.setattr(settings, "missing_for_compile", lambda device: None)

    def decide(world=one, **changes) -> bool:
        return resolve_compile(LoopConfig(**changes), model, resolved, world).compile

    assert not resolved.compile and not decide(steps=10_000)
    assert decide(steps=1_000_000) and not decide(steps=1_000_000, compile=False)
    assert not decide(steps=1_000_000, world=parallel.World(rank=0, size=2))
    assert decide(time_budget="20m") and not decide(time_budget="5m", steps=1_000_000)
    monkeypatch.setattr(settings, "missing_for_compile", lambda device: "a C++ compiler")
    assert not decide(steps=1_000_000)


def test_a_run_saves_the_resolved_micro_batch(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok("train", *base, "micro_batch=auto", "activation_checkpointing=true")
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert any(f"micro_batch: {rows}\n" in saved for rows in (1, 2, 4))
    refused = run("train", *base[:-1], "run_dir=other", "micro_batch=some")
    assert refused.status == 2 and 'micro_batch="some" is not a number, null or auto' in refused.err
