"""AdamW and Muon over one model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import InputError
from ..distributed import parallel, sharded
from ..gpt import Attention
from .muon import Muon
from .schedule import OptimizerConfig

# Older checkpoints hold the momenta of queries, keys and values apart: the end of a name, such as .0-128.
BLOCK = re.compile(r"blocks\.(\d+)\.")
ROWS = re.compile(r"\.(\d+)-\d+$")
FUSED_ON = ("cpu", "cuda")  # elsewhere (MPS) torch's fused AdamW ignores grad_scale and found_inf


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Returns the hidden matrices, which Muon updates, and all others (embeddings, head, norms, biases), if trained."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trained.items() if name.startswith("blocks.") and p.dim() == 2}
    return matrices, {name: p for name, p in trained.items() if name not in matrices}


def lr_scales(names: Iterable[str], n_layer: int, layer_decay: float) -> dict[str, float]:
    """Returns the factor of each parameter's learning rate: layer_decay for each layer between it and the output."""
    scales = {}
    for name in names:
        block = BLOCK.match(name)
        depth = int(block[1]) + 1 if block else 0 if name.startswith(("embed.", "position_embed.")) else n_layer + 1
        scales[name] = layer_decay ** (n_layer + 1 - depth)
    return scales


class Optimizer:
    """Muon for hidden matrices and AdamW for everything else; with name=adamw, AdamW for everything.

    Not a torch.optim.Optimizer, because it never waits for the device (the flag to skip an update stays a tensor), and
    its state is saved by parameter name. Under FSDP each rank updates its rows and holds their state.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, *, newton_schulz_dtype: torch.dtype = torch.float32
    ) -> None:
        matrices, others = split_parameters(model)
        if config.name == "adamw":
            others, matrices = others | matrices, {}
        self.parameters = others | matrices
        self.sharded = any(map(sharded.is_sharded, self.parameters.values()))
        # The rows of queries, keys and values in each qkv matrix.
        attentions = {path: m for path, m in model.named_modules() if isinstance(m, Attention)}
        row_counts = {f"{path}.qkv.weight": m.qkv_widths for path, m in attentions.items()}
        scales = lr_scales(self.parameters, len(attentions), config.layer_decay)
        self.muon = Muon(matrices, config, row_counts=row_counts, dtype=newton_schulz_dtype, scales=scales)
        # This rank's rows, or without FSDP all of them; they share the memory of the model's parameters.
        self.adamw_parameters = {name: nn.Parameter(sharded.to_local(p)) for name, p in others.items()}
        self.adamw_lr = config.learning_rate if config.name == "adamw" else config.adamw_learning_rate
        groups: defaultdict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
        for name, p in self.adamw_parameters.items():
            groups[p.dim() >= 2, scales[name]].append(p)
        fused = next(iter(self.parameters.values())).device.type in FUSED_ON
        self.adamw = torch.optim.AdamW(
            [
                {"params": some, "weight_decay": config.weight_decay * decayed, "scale": scale}
                for (decayed, scale), some in groups.items()
            ] or [{"params": [], "scale": 1.0}],
            betas=(config.beta1, config.beta2), eps=config.eps, fused=fused,
        )  # fmt: skip
        for p in self.adamw_parameters.values():  # as torch does at the first update
            step = torch.zeros((), device=p.device if fused else "cpu")
            self.adamw.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def gradient_norm(self) -> Tensor:
        """The global gradient norm, a tensor ()."""
        gradients = [sharded.to_local(p.grad) for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return parallel.all_reduce_sum(norm.square()).sqrt() if self.sharded else norm

    @torch.no_grad()
    def step(self, multiplier: float, *, divisor: Tensor, skip: Tensor) -> None:
        """Updates with gradients / divisor at `multiplier` times the peak learning rates; does nothing if skip is true.

        divisor and skip are tensors (). torch's fused AdamW divides by `grad_scale` and skips if `found_inf` is 1, the
        hooks of torch.amp.GradScaler.
        """
        for name, p in self.adamw_parameters.items():
            gradient = self.parameters[name].grad
            p.grad = None if gradient is None else sharded.to_local(gradient)
        adamw: Any = self.adamw
        if adamw.defaults["fused"]:
            adamw.grad_scale, adamw.found_inf = divisor, skip.float()
        elif bool(skip):
            return
        else:
            for p in self.adamw_parameters.values():
                if p.grad is not None:
                    p.grad.div_(divisor)
        for group in adamw.param_groups:
            group["lr"] = multiplier * self.adamw_lr * group["scale"]
        adamw.step()
        self.muon.step(multiplier, divisor=divisor, skip=skip)

    def zero_grad(self) -> None:
        for p in (*self.parameters.values(), *self.adamw_parameters.values()):
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next update depends on, by parameter name; sharded as the parameters are."""
        state = {
            f"adamw.{key}.{name}": sharded.from_local(self.parameters[name], value) if value.dim() else value
            for name, p in self.adamw_parameters.items()
            for key, value in self.adamw.state[p].items()
        }
        for name, momentum in self.muon.momenta.items():
            state[f"muon.momentum.{name}"] = sharded.from_local(self.parameters[name], momentum)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what state_dict() returned, from full tensors. Raises InputError if they do not fit the model."""
        saved: defaultdict[str, list[str]] = defaultdict(list)  # the names of the parts of each tensor, usually one
        for name in state:
            if name.startswith(("adamw.", "muon.")):
                saved[ROWS.sub("", name)].append(name)
        mine = self.state_dict()
        if different := mine.keys() ^ saved.keys():
            raise InputError(
                f"the saved state is another optimizer's or model's ({min(different)!r} is in only one of the two); "
                "resume with the run's own settings"
            )
        for name, target in mine.items():
            parts = sorted(saved[name], key=lambda part: [int(row) for row in ROWS.findall(part)])
            value = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
            if value.shape != target.shape:
                raise InputError(f"the saved optimizer state {name!r} does not fit this model")
            sharded.to_local(target).copy_(value[sharded.local_rows(target)] if value.dim() else value)
