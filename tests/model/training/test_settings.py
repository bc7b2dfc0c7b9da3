"""Resolving `auto`: when a run is compiled, and what its config keeps."""

from __future__ import annotations

import torch

from model.device import Compute
from model.distributed import parallel
from model.training import settings
from model.training.settings import LoopConfig, resolve_compile, runtime_info
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


def test_a_run_says_which_attention_serves_its_document_mask(monkeypatch):
    def attention(where: str, dtype: torch.dtype, **how: bool) -> str:
        compute = Compute(torch.device(where), dtype, compile=False)
        cfg = LoopConfig(run_dir="out/x", micro_batch=1)
        return runtime_info(cfg, make("modern"), compute, parallel.World(), **how)["attention"]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert attention("cuda:0", torch.bfloat16) == "sdpa"
    assert attention("cuda:0", torch.bfloat16, document_mask=True) == "varlen"
    assert attention("cuda:0", torch.float32, document_mask=True) == "sdpa with a dense mask"
    assert attention("cpu", torch.bfloat16, document_mask=True) == attention("cpu", torch.bfloat16)
