"""From logits to probabilities to a token: penalties, temperature, the filters, the draw."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import InputError

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a UTF-16 pair (json's \ud800), which no UTF-8 can hold


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose the next token; the defaults draw from the model's own distribution.

    Applied in this order: what banned, forced and min_new_tokens exclude, penalties, temperature, top_k, top_p, min_p,
    typical_p. Each filter sees the probabilities that the one before it left, and scales what it keeps to a sum of 1.
    """

    temperature: float = 1.0  # 0: always the most probable token
    top_k: int | None = None  # keep the k most probable tokens
    top_p: float | None = None  # keep the fewest tokens whose probabilities reach p (Holtzman et al. 2020)
    min_p: float | None = None  # keep tokens at least this fraction as probable as the best (Nguyen et al. 2024)
    typical_p: float | None = None  # as top_p, the least surprisingly surprising first (Meister et al. 2022)
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt and new text (CTRL: Keskar et al. 2019)
    presence_penalty: float = 0.0  # subtracted from the logit of each token in the new text
    frequency_penalty: float = 0.0  # likewise, times how often the new text has it
    min_new_tokens: int = 0  # before so many, neither the end token nor a stop string ends the text
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    bad_words: tuple[str, ...] = ()  # never in the new text, however it is cut into tokens
    force_words: tuple[str, ...] = ()  # somewhere in the new text, in any order

    def validate(self) -> list[str]:
        """Everything that is wrong with the settings, one line each. NaN fails every comparison, so it is wrong too."""
        found = []
        for name, valid, range_ in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or above"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1 (null: no limit)"),
            ("top_p", self.top_p is None or 0 <= self.top_p <= 1, "between 0 and 1 (null: no limit)"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1 (null: no limit)"),
            ("typical_p", self.typical_p is None or 0 <= self.typical_p <= 1, "between 0 and 1 (null: no limit)"),
            ("repetition_penalty", 1e-9 <= self.repetition_penalty <= 1e9, "between 1e-9 and 1e9 (1: none)"),
            ("presence_penalty", abs(self.presence_penalty) <= 1e9, "between -1e9 and 1e9 (0: none)"),
            ("frequency_penalty", abs(self.frequency_penalty) <= 1e9, "between -1e9 and 1e9 (0: none)"),
            ("min_new_tokens", self.min_new_tokens >= 0, "0 or above"),
        ):
            if not valid:
                found.append(f"{name}={getattr(self, name)} must be {range_}")
        for name in ("stop", "bad_words", "force_words"):
            if isinstance(getattr(self, name), str):
                found.append(f"{name}={getattr(self, name)!r} must be a list of strings")
            elif not all(isinstance(text, str) and text and not SURROGATE.search(text) for text in getattr(self, name)):
                found.append(f"{name}={list(getattr(self, name))} holds what is no text of at least one character")
        return found

    @property
    def filters(self) -> str:
        """The temperature and filters that are on, as on a command line; empty: the model's own distribution."""
        off = {"temperature": 1.0} | dict.fromkeys(FILTERS)
        return " ".join(f"{name}={getattr(self, name)}" for name in off if getattr(self, name) != off[name])

    @property
    def penalizes(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def checked(sampling: SamplingConfig | None) -> SamplingConfig:
    """The settings, or the defaults. Raises InputError for what is wrong with them."""
    sampling = sampling or SamplingConfig()
    if problems := sampling.validate():
        raise InputError(*problems)
    return sampling


def penalize(logits: Tensor, sampling: SamplingConfig, *, seen: Tensor, counts: Tensor) -> Tensor:
    """Lowers the logits (B, V) of tokens that were used. seen (B, V), bool: those in the prompt or in the new text;
    counts (B, V): how often the new text has each.

    Repetition: as in CTRL, but a negative logit is multiplied, for dividing it would reward the token. Presence and
    frequency: as in OpenAI's interface.
    """
    if (theta := sampling.repetition_penalty) != 1:
        logits = torch.where(seen, torch.where(logits > 0, logits / theta, logits * theta), logits)
    if sampling.presence_penalty or sampling.frequency_penalty:
        logits = logits - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts
    return logits


def probabilities(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """logits (..., V) -> the probabilities (..., V) that sampling draws from, in float32; they sum to 1.

    Temperature and filters only: penalties and constraints depend on the text so far.
    """
    return list(filtered(logits, sampling))[-1][1]


def filtered(logits: Tensor, sampling: SamplingConfig) -> Iterator[tuple[str, Tensor]]:
    """The name of each filter that is on and the probabilities (..., V) after it, one by one."""
    logits = logits.float()
    if sampling.temperature == 0:
        yield "temperature", torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
        return
    if sampling.temperature != 1:  # subtracting the maximum first keeps tiny temperatures finite
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    probs = torch.softmax(logits, dim=-1)
    yield "temperature", probs
    for name, keep in FILTERS.items():
        if (setting := getattr(sampling, name)) is not None:
            probs = torch.where(keep(probs, setting), probs, 0.0)
            probs = probs / probs.sum(dim=-1, keepdim=True)
            yield name, probs


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    """True (..., V) for the k most probable tokens."""
    k = min(k, probs.shape[-1])
    return largest(probs, probs.topk(k).values[..., -1:], k)


def keep_top_p(probs: Tensor, p: float) -> Tensor:
    """True (..., V) for the fewest tokens that reach p: one at least."""
    return fewest(probs, probs, p)


def keep_min_p(probs: Tensor, p: float) -> Tensor:
    return probs >= p * probs.amax(dim=-1, keepdim=True)


def keep_typical(probs: Tensor, p: float) -> Tensor:
    """As top_p, but first come the tokens whose surprise -ln p is nearest to the expected one, the entropy."""
    entropy = torch.special.entr(probs).sum(dim=-1, keepdim=True)
    return fewest(probs, -(probs.log() + entropy).abs(), p)


FILTERS: dict[str, Callable[..., Tensor]] = {
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
}


def fewest(probs: Tensor, score: Tensor, p: float, *, among: int = 256) -> Tensor:
    """True (..., V) for the tokens of the highest score, as few as have probabilities that reach p; one at least.

    Looks among so many of the highest scores; for the rows where these do not reach p, among more. Sorting them all
    for each row would cost as much as a small model's step, and few usually do.
    """
    if p == 1:
        return torch.ones_like(probs, dtype=torch.bool)  # whatever the sum rounds to
    ordered, ids = score.topk(min(among, probs.shape[-1]))
    mass = probs.gather(-1, ids).cumsum(dim=-1)
    count = ((mass < p).sum(dim=-1, keepdim=True) + 1).clamp(max=mass.shape[-1])
    kept = largest(score, ordered.gather(-1, count - 1), count)
    short = mass[..., -1] < p
    if among < probs.shape[-1] and short.any():
        kept[short] = fewest(probs[short], score[short], p, among=4 * among)
    return kept


def largest(score: Tensor, threshold: Tensor, count: Tensor | int) -> Tensor:
    """True (..., V) for exactly the `count` largest, the last of which is `threshold`; ties: the smaller ids."""
    kept = score >= threshold
    if (kept.sum(dim=-1, keepdim=True) > count).any():
        equal = score == threshold
        kept &= ~equal | (equal.cumsum(dim=-1) <= count - (kept & ~equal).sum(dim=-1, keepdim=True))
    return kept


def draw(probs: Tensor, keys: Sequence[int], *, candidates: int | None = None) -> Tensor:
    """Draws one id from each row of probs (B, V), row i with the noise of keys[i]; returns (B,).

    Gumbel-max: the argmax of ln p + G, where every G is standard Gumbel noise -ln(-ln u), is i with probability p[i].
    Written p / -ln u, which has the same argmax. Unlike in a walk along the cumulated probabilities, a change of 1e-6
    in p can change the result only where two tokens are that close. candidates: how many of a row's p may not be 0.
    """
    device = probs.device
    if device.type == "mps":
        probs = probs.cpu()  # it has no float64
    if few := candidates is not None and 8 * candidates < probs.shape[-1]:
        probs, tokens = probs.topk(candidates)
    else:
        tokens = torch.arange(probs.shape[-1], device=probs.device)
    best = (probs / uniform(keys, tokens).log_()).argmin(dim=-1, keepdim=True)  # both minus signs left out
    return (tokens.gather(-1, best) if few else best)[:, 0].to(device)


def uniform(keys: Sequence[int], tokens: Tensor) -> Tensor:
    """The noise of tokens (B, N) or, for all rows alike, (N,): float64 numbers (B, N) in (0, 1).

    Each is a pure function of (keys[row], token): number `token` of the SplitMix64 sequence that starts at the key
    (Steele et al. 2014), so that it depends neither on which others are asked for nor on the device.
    """
    golden, first, second = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # as in the paper
    state = tokens * golden + torch.tensor(keys, device=tokens.device)[:, None]  # int64 products wrap around
    for shift, factor in ((30, first), (27, second), (31, 1)):
        state ^= (state >> shift).bitwise_and_((1 << 64 - shift) - 1)  # and: a logical shift
        state *= factor
    # The upper 52 bits, from -2^51 to 2^51 - 1, and a half: an odd multiple of 2^-53, never 0 or 1.
    return (state >> 12).double().add_(2.0**51 + 0.5).mul_(2.0**-52)
