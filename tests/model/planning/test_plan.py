"""Costs by arithmetic: parameters, FLOPs and GPUs agree with the model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conf import cli
from model import InputError
from model.device import Compute
from model.gpt import GPT
from model.planning import memory, plan
from tests.families import FAMILIES, make
from tests.programs import ok, run
from train import TrainConfig

CPU = Compute.resolve("cpu", dtype="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_by_part_add_up(family):
    model = make(family)
    parts = plan.parameters_by_part(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert ("head" in parts) == (not model.config.tie_embeddings)
    assert parts["mlp"] == sum(p.numel() for block in model.blocks for p in block.mlp.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_agree_with_torchs_counter(family):
    model = make(family)
    ids = torch.randint(96, (1, 48))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids, targets=ids).backward()
    # The counter sees the padded head and full attention too. The first layer's input needs no gradient only where
    # the embedding is not trained, so everything counts three times.
    assert plan.flops_per_token(model) * 48 == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_large_presets_have_the_size_of_their_names_and_allocate_nothing():
    reset = memory.peak(CPU.device)
    for name, billions in (("llama_10b", 10.5), ("llama_70b", 70.6), ("llama_100b", 101.8)):
        cfg = cli.compose(TrainConfig, name="train", arguments=[f"model={name}", "dry_run=true"])[0]
        cfg.model.vocab_size = 128_256
        with torch.device("meta"):
            model = GPT(cfg.model)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.1)
        gpus, used = plan.sizing(model, "H100", muon=False)
        assert sum(used.values()) <= 0.9 * plan.GPUS["H100"].memory * plan.GIB
        assert gpus * plan.GPUS["H100"].memory * plan.GIB > plan.state_bytes(model, muon=False)
    assert reset is None or memory.peak(CPU.device) - reset < 200 * 2**20


def test_a_gpu_is_found_by_the_drivers_name_and_an_unknown_one_refused():
    assert plan.find_gpu("NVIDIA H100 80GB HBM3") == plan.GPUS["H100"]
    assert plan.find_gpu("NVIDIA H100 PCIe") == plan.GPUS["H100PCIE"]
    assert plan.find_gpu("NVIDIA A100-SXM4-40GB") == plan.GPUS["A100-40"] != plan.GPUS["A100"]
    assert plan.find_gpu("h200") == plan.GPUS["H200"]
    with pytest.raises(InputError, match="gpu='Abacus' is not one of T4, "):
        plan.sizing(make("llama"), "Abacus", muon=True)


def test_sizing_on_paper_reads_no_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ok("train", "dry_run=true", "gpu=H100", "model=llama_70b", "tokenizer.vocab_size=128256", "corpus=nowhere")
    assert "70.6B" in out and " x H100," in out and not list(tmp_path.iterdir())
    refused = run("train", "gpu=H100", "run_dir=x")
    assert refused.status == 2 and "gpu=H100 is for dry_run=true" in refused.err
