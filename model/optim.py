"""AdamW and Muon over one model; learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import InputError, sharded
from .adamw import FUSED_ON, AdamW, Group


@dataclass
class OptimizerConfig:
    """How weights follow gradients. With muon, `learning_rate` is the matrices', `adamw_learning_rate` the rest's."""

    kind: str = "muon"  # muon | adamw
    learning_rate: float = 0.02  # the highest of the schedule
    adamw_learning_rate: float = 0.004  # muon: that of embeddings, head and 1-D parameters
    weight_decay: float = 0.1  # decoupled; never on 1-D parameters
    cautious: bool = False  # decay a weight only where the update moves it towards zero too (Chen et al. 2025)
    beta1: float = 0.9  # AdamW: memory of the mean gradient
    beta2: float = 0.95  # AdamW: memory of the mean squared gradient
    epsilon: float = 1e-8  # AdamW: smallest divisor
    momentum: float = 0.9  # muon: memory of the gradient
    newton_schulz: str = "auto"  # muon: format of the iteration; auto: bfloat16 where that is fast, else float32
    clip: float = 1.0  # largest norm of the whole gradient; 0: no clipping
    warmup_steps: int | None = None  # null: min(100, steps // 10)
    schedule: str = "wsd"  # wsd | cosine | constant
    decay_fraction: float = 0.5  # wsd: the share of the steps in which the rate falls linearly
    final_fraction: float = 0.0  # wsd, cosine: the rate at the end, as a share of the highest

    def problems(self) -> list[str]:
        found = []
        for name, allowed in (
            ("kind", ("muon", "adamw")),
            ("schedule", ("wsd", "cosine", "constant")),
            ("newton_schulz", ("auto", "bfloat16", "float32")),
        ):
            if getattr(self, name) not in allowed:
                found.append(f"optimizer.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("learning_rate", "adamw_learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                found.append(f"optimizer.{name}={getattr(self, name)} must be above 0")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")
        for name in ("weight_decay", "clip", "warmup_steps"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                found.append(f"optimizer.{name}={getattr(self, name)} must be 0 or above")
        for name in ("decay_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"optimizer.{name}={getattr(self, name)} must be in [0, 1]")
        return found


def warmup(config: OptimizerConfig, steps: int) -> int:
    return min(100, steps // 10) if config.warmup_steps is None else config.warmup_steps


def decay_start(steps: int, config: OptimizerConfig) -> int:
    """The first of `steps` steps whose learning rate may be below the highest after the warm-up; no earlier one's
    depends on `steps` where the warm-up does not.
    """
    if config.schedule == "constant":
        return steps
    rise = warmup(config, steps)
    return rise if config.schedule == "cosine" else max(rise, steps - round(config.decay_fraction * steps))


def rate_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """The learning rate of update number `step` (from 0) of `steps`, as a share of the highest: in (0, 1]."""
    rise = warmup(config, steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    if config.schedule == "constant":
        return 1.0
    start = decay_start(steps, config)
    if step < start:
        return 1.0
    progress = (step - start) / max(1, steps - start)  # never reaches 1: even the last update moves
    fall = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.final_fraction + (1 - config.final_fraction) * fall


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Hidden matrices, for which Muon is made, and all the rest: embeddings, head, norms, biases."""
    hidden = {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    rest = {name: p for name, p in model.named_parameters() if name not in hidden}
    return hidden, rest


class Optimizer:
    """Updates a model in place, decides nothing on the host: whether to skip an update is a tensor."""

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, *, newton_schulz_dtype: torch.dtype = torch.float32
    ) -> None:
        hidden, rest = split_parameters(model)
        if config.kind == "adamw":
            rest, hidden = rest | hidden, {}
        self.config = config
        self.parameters = rest | hidden
        self.sharded = any(map(sharded.is_sharded, self.parameters.values()))
        assert not self.sharded or all(map(sharded.is_sharded, self.parameters.values())), "some are gathered"
        # Where the model is sharded, AdamW sees this rank's rows of each parameter, and Muon some matrices, whole.
        self.parts = {name: nn.Parameter(sharded.part(p)) if sharded.is_sharded(p) else p for name, p in rest.items()}
        self.owners = sharded.Owners(hidden) if any(map(sharded.is_sharded, hidden.values())) else None
        # Elsewhere the fused kernel cannot divide or skip, so the host must.
        self.on_device = next(iter(self.parameters.values())).device.type in FUSED_ON
        rate = config.learning_rate if config.kind == "adamw" else config.adamw_learning_rate
        self.decayed = [p for p in self.parts.values() if p.dim() >= 2]  # by AdamW
        self.adamw = AdamW(
            [
                Group(self.decayed, 0.0 if config.cautious else config.weight_decay),
                Group([p for p in self.parts.values() if p.dim() < 2], 0.0),
            ],
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            fused=self.on_device,
        )
        self.adamw_rate = rate
        self.fused = fused_parts(model)
        matrices = self.owners.mine if self.owners else hidden
        self.muon = Muon(matrices, config, dtype=newton_schulz_dtype, fused=self.fused) if hidden else None

    def gradients(self) -> list[Tensor]:
        """This rank's part of every gradient."""
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        return [sharded.part(grad) for grad in found] if self.sharded else found

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm over all gradients, a tensor ()."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients())))
        if self.sharded:
            squares = norm.square()
            torch.distributed.all_reduce(squares)
            norm = squares.sqrt()
        return norm

    def step(self, rate: float, *, divisor: Tensor, skip: Tensor) -> None:
        """One update at `rate` times the configured rates, of gradients divided by `divisor` (); none if `skip` ()."""
        if not self.on_device:
            if bool(skip):
                return
            torch._foreach_div_(self.gradients(), divisor)
            divisor = torch.ones_like(divisor)
        for name, p in self.parts.items() if self.sharded else ():
            grad = self.parameters[name].grad
            p.grad = None if grad is None else sharded.part(grad)
        scaling = {"divisor": divisor, "skip": skip.float()} if self.on_device else {}
        self.adamw.step(rate * self.adamw_rate, **scaling)
        if self.config.cautious:
            self._decay_cautiously(rate, skip)
        if self.muon is not None:
            if self.owners is not None:
                self.owners.fetch_gradients()
            self.muon.step(rate, divisor=divisor, skip=skip)
            if self.owners is not None:
                self.owners.spread_weights()

    @torch.no_grad()
    def _decay_cautiously(self, rate: float, skip: Tensor) -> None:
        """Weight decay after AdamW's update, whose sign is that of the mean gradient: see cautious_decay."""
        for p in self.decayed:
            if "exp_avg" in self.adamw.state[p]:
                amount = rate * self.adamw_rate * self.config.weight_decay * (1 - skip.float())
                cautious_decay(p, self.adamw.state[p]["exp_avg"], amount)

    def zero_grad(self) -> None:
        owned = self.owners.mine if self.owners else {}
        for p in (*self.parameters.values(), *self.parts.values(), *owned.values()):
            p.grad = None

    def state(self) -> dict[str, Tensor | sharded.Owned]:
        """Everything that the next update depends on, under the names of the parameters; the same names on each rank.

        Where the model is sharded, tensors of a parameter's shape are sharded alike, and Muon's are their owners'.
        """
        result: dict[str, Tensor | sharded.Owned] = {
            f"adamw.{key}.{name}": sharded.like(self.parameters[name], value) if value.dim() else value
            for name, p in self.parts.items()
            for key, value in self.adamw.state[p].items()
        }
        return result | {f"muon.momentum.{name}": piece for name, piece in self.momenta().items()}

    def momenta(self) -> dict[str, Tensor | sharded.Owned]:
        """Muon's momentum of each piece of a hidden matrix; only its owner has it where the model is sharded."""
        mine = dict(self.muon.state()) if self.muon is not None else {}
        if self.owners is None:
            return dict(mine)
        owner = self.owners.owner
        return {
            piece: sharded.Owned(owner[name], torch.Size((stop - start, p.shape[1])), p.device, mine.get(piece))
            for name, p in self.owners.parameters.items()
            for piece, start, stop in pieces_of(name, p, self.fused)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave, each tensor whole. Raises InputError where it does not fit the model."""
        if self.owners is not None:
            self.owners.fetch_weights()
        if {name for name in state if name.startswith("muon.")} != {f"muon.momentum.{name}" for name in self.momenta()}:
            raise InputError("the saved optimizer state is not this optimizer's; resume with the run's own optimizer")
        for full in (name for name in state if name.startswith("adamw.")):
            _, key, name = full.split(".", 2)
            value = state[full]
            if name not in self.parts or (value.dim() and value.shape != self.parameters[name].shape):
                raise InputError(f"the saved optimizer state of {name!r} does not fit this model")
            p = self.parts[name]
            self.adamw.load(p, key, value[sharded.rows_of(self.parameters[name])] if value.dim() else value)
        if self.muon is not None:
            for name, momentum in self.muon.state():
                momentum.copy_(state[f"muon.momentum.{name}"])


def pieces_of(name: str, p: Tensor, fused: dict[str, list[int]]) -> Iterator[tuple[str, int, int]]:
    """The matrices that a parameter holds stacked: name, first row, row behind the last. Mostly one, of its name."""
    start, sizes = 0, fused.get(name, [len(p)])
    for rows in sizes:
        yield name if rows == len(p) else f"{name}.{start}-{start + rows}", start, start + rows
        start += rows


def fused_parts(model: nn.Module) -> dict[str, list[int]]:
    """Row counts of the matrices that a parameter holds stacked, for those that hold several."""
    return {f"{path}.qkv.weight": module.sizes for path, module in model.named_modules() if hasattr(module, "qkv")}


class Muon:
    """Momentum, orthogonalised (Jordan 2024): every update of a matrix has singular values near 1.

    Matrices of one shape live in one stack (N, rows, cols), so that each iteration is three batched products.
    Queries, keys and values are matrices of their own, though the model stores them as one.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        config: OptimizerConfig,
        *,
        dtype: torch.dtype,
        fused: dict[str, list[int]],
    ) -> None:
        self.config, self.dtype = config, dtype
        pieces: dict[tuple[int, int], list[tuple[str, nn.Parameter, int, int]]] = {}
        for name, p in parameters.items():
            for piece, start, stop in pieces_of(name, p, fused):
                pieces.setdefault((stop - start, p.shape[1]), []).append((piece, p, start, stop))
        self.stacks = [
            (group, torch.zeros(len(group), *shape, device=group[0][1].device)) for shape, group in pieces.items()
        ]

    @torch.no_grad()
    def step(self, rate: float, *, divisor: Tensor, skip: Tensor) -> None:
        rate *= self.config.learning_rate
        keep = 1 - skip.float()
        for group, momentum in self.stacks:
            gradient = torch.stack([gradient_of(p)[start:stop] for _, p, start, stop in group])  # (N, rows, cols)
            gradient = gradient.div_(divisor).masked_fill_(skip, 0.0)
            momentum.lerp_(gradient, keep * (1 - self.config.momentum))
            direction = gradient.lerp_(momentum, self.config.momentum)  # Nesterov
            update = orthogonalise(direction, self.dtype)
            rows, cols = update.shape[1:]
            update *= -rate * max(1.0, rows / cols) ** 0.5 * keep
            weights = [p.data[start:stop] for _, p, start, stop in group]
            decay = rate * self.config.weight_decay * keep
            if self.config.cautious:
                for weight, change in zip(weights, update.unbind(), strict=True):
                    cautious_decay(weight, -change, decay)
            else:
                torch._foreach_mul_(weights, 1 - decay)
            torch._foreach_add_(weights, list(update.unbind()))

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The momentum of each piece, a view."""
        for group, momentum in self.stacks:
            for (name, *_), piece in zip(group, momentum, strict=True):
                yield name, piece


def cautious_decay(weight: Tensor, descent: Tensor, amount: Tensor) -> None:
    """weight *= 1 - amount () where subtracting `descent` moves the weight towards zero, in place; elsewhere nothing.

    Decay then never works against the loss, and the stationary points stay the loss's own (Chen et al. 2025,
    "Cautious Weight Decay", arXiv 2510.12402).
    """
    weight.mul_(1 - amount * (weight * descent > 0))


def gradient_of(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def orthogonalise(g: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest (semi-)orthogonal matrices to g (N, rows, cols), nearly: five quintic Newton-Schulz steps in `dtype`.

    The coefficients trade exactness for speed: singular values end between about 0.7 and 1.2, which serves as well.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).to(dtype)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
