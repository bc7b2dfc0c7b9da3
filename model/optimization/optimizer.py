"""AdamW and Muon over one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import InputError
from ..gpt import Attention
from .muon import Muon
from .schedule import OptimizerConfig

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")  # torch's names of the update count and the two moments
FUSED_ON = ("cpu", "cuda")  # elsewhere (MPS) torch's fused AdamW ignores grad_scale and found_inf


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Returns the hidden matrices, which Muon updates, and all other parameters: embeddings, head, norms, biases."""
    matrices = {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    others = {name: p for name, p in model.named_parameters() if name not in matrices}
    return matrices, others


class Optimizer:
    """Muon for hidden matrices and AdamW for everything else; with name=adamw, AdamW for everything.

    Not a torch.optim.Optimizer, because it never waits for the device (the flag to skip an update stays a tensor), and
    its state is saved by parameter name.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, *, newton_schulz_dtype: torch.dtype = torch.float32
    ) -> None:
        self.config = config
        matrices, others = split_parameters(model)
        if config.name == "adamw":
            others, matrices = others | matrices, {}
        self.parameters = others | matrices
        # The rows of queries, keys and values in each qkv matrix.
        attentions = ((path, m) for path, m in model.named_modules() if isinstance(m, Attention))
        self.row_counts = {f"{path}.qkv.weight": m.qkv_widths for path, m in attentions}
        # What AdamW and Muon update: the model's own parameters, or this rank's part of them (ShardedOptimizer).
        self.adamw_parameters, self.muon_parameters = self.local_parameters(others, matrices)
        self.adamw_lr = config.learning_rate if config.name == "adamw" else config.adamw_learning_rate
        decayed = [p for p in self.adamw_parameters.values() if p.dim() >= 2]
        not_decayed = [p for p in self.adamw_parameters.values() if p.dim() < 2]
        device = next(iter(self.parameters.values())).device
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": not_decayed, "weight_decay": 0.0},
            ],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=device.type in FUSED_ON,
        )
        self.muon = None
        if matrices:
            self.muon = Muon(self.muon_parameters, config, row_counts=self.row_counts, dtype=newton_schulz_dtype)

    def local_parameters(
        self, others: dict[str, nn.Parameter], matrices: dict[str, nn.Parameter]
    ) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The parameters that AdamW and Muon update on this rank."""
        return others, matrices

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """The global gradient norm, a tensor ()."""
        return torch.nn.utils.get_total_norm(self.gradients())

    @torch.no_grad()
    def step(self, multiplier: float, *, divisor: Tensor, skip: Tensor) -> None:
        """Updates with gradients / divisor at `multiplier` times the peak learning rates; does nothing if skip is true.

        divisor and skip are tensors (). torch's fused AdamW divides by `grad_scale` and skips if `found_inf` is 1, the
        hooks of torch.amp.GradScaler.
        """
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
            group["lr"] = multiplier * self.adamw_lr
        adamw.step()
        if self.muon is not None:
            self.muon.step(multiplier, divisor=divisor, skip=skip)

    def zero_grad(self) -> None:
        # Under FSDP, adamw_parameters and muon_parameters are this rank's parts, with gradients of their own.
        for p in (*self.parameters.values(), *self.adamw_parameters.values(), *self.muon_parameters.values()):
            p.grad = None

    def momenta(self) -> Mapping[str, Any]:
        """Muon's momentum of each matrix, by name."""
        return dict(self.muon.momenta()) if self.muon is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on, by parameter name."""
        adamw = {
            f"adamw.{key}.{name}": self.to_global(name, value)
            for name, p in self.adamw_parameters.items()
            for key, value in (self.adamw.state[p] or self.initial_state(p)).items()
        }
        return adamw | {f"muon.momentum.{name}": momentum for name, momentum in self.momenta().items()}

    def initial_state(self, p: Tensor) -> dict[str, Tensor]:
        """AdamW's state of a parameter before its first update, for which torch keeps none."""
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what state_dict() returned, from full tensors. Raises InputError if they do not fit the model."""
        names = {f"adamw.{key}.{name}" for key in ADAMW_STATE for name in self.adamw_parameters}
        names |= {f"muon.momentum.{name}" for name in self.momenta()}
        if different := names ^ {name for name in state if name.startswith(("adamw.", "muon."))}:
            raise InputError(
                f"the saved state is another optimizer's or model's ({min(different)!r} is in only one of the two); "
                "resume with the run's own settings"
            )
        for name, p in self.adamw_parameters.items():
            for key in ADAMW_STATE:
                value = state[f"adamw.{key}.{name}"]
                if value.dim() and value.shape != self.parameters[name].shape:
                    raise InputError(f"the saved optimizer state of {name!r} does not fit this model")
                # An unfused AdamW keeps its step counter on the CPU.
                device = p.device if self.adamw.defaults["fused"] or value.dim() else "cpu"
                self.adamw.state[p][key] = self.to_local(name, value).to(device, copy=True)
        for name, momentum in self.muon.momenta() if self.muon is not None else ():
            momentum.copy_(state[f"muon.momentum.{name}"])

    def to_global(self, name: str, value: Tensor) -> Any:
        """Returns a tensor of AdamW's state as it is saved."""
        return value

    def to_local(self, name: str, value: Tensor) -> Tensor:
        """Returns this rank's part of a saved tensor."""
        return value
