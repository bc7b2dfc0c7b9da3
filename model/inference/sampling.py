"""Logits to probabilities to a token: penalties, temperature, filters and the draw. Pure functions of tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import InputError

NOT_FINITE = "the model's logits are not finite numbers; use dtype=float32, or another checkpoint"
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a UTF-16 pair (\ud800 in JSON), which UTF-8 cannot encode


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose the next token. The defaults sample from the model's own distribution.

    The steps apply in this order: constraints (bad_words, force_words, min_new_tokens), penalties, temperature, top_k,
    top_p, min_p, typical_p. Each filter reads the probabilities that the previous one left, and renormalizes.
    """

    temperature: float = 1.0  # 0: greedy, always the most probable token
    top_k: int | None = None  # keep the k most probable tokens
    top_p: float | None = None  # keep the fewest tokens whose probabilities sum to p (Holtzman et al. 2020)
    min_p: float | None = None  # keep tokens at least this fraction as probable as the best (Nguyen et al. 2024)
    typical_p: float | None = None  # top_p over tokens sorted by |surprisal - entropy| (Meister et al. 2022)
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt and new text (CTRL: Keskar et al. 2019)
    presence_penalty: float = 0.0  # subtracted from the logit of each token in the new text
    frequency_penalty: float = 0.0  # subtracted as well, times the token's count in the new text
    min_new_tokens: int = 0  # until then neither the end token nor a stop string ends the text
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    bad_words: tuple[str, ...] = ()  # strings that never appear in the new text, however they are tokenized
    force_words: tuple[str, ...] = ()  # strings that must appear in the new text, in any order

    def validate(self) -> list[str]:
        """All errors in the settings, one line each."""
        found = []
        for name, valid, range_ in (  # NaN fails every comparison
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
            strings = getattr(self, name)
            if isinstance(strings, str):
                found.append(f"{name}={strings!r} must be a list of strings")
            elif not all(isinstance(text, str) and text and not SURROGATE.search(text) for text in strings):
                found.append(f"{name}={list(strings)} must contain only non-empty strings of valid Unicode")
        return found

    @property
    def filters(self) -> str:
        """The temperature and filters that are on, as on a command line: "temperature=0.7 top_k=20"; "" for none."""
        off = {"temperature": 1.0} | dict.fromkeys(FILTERS)
        return " ".join(f"{name}={getattr(self, name)}" for name in off if getattr(self, name) != off[name])

    @property
    def has_constraints(self) -> bool:
        return bool(self.bad_words or self.force_words or self.min_new_tokens)

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def checked(sampling: SamplingConfig | None) -> SamplingConfig:
    """Returns the settings, or the defaults for None. Raises InputError with all errors in them."""
    sampling = sampling or SamplingConfig()
    if errors := sampling.validate():
        raise InputError(*errors)
    return sampling


def penalize(logits: Tensor, sampling: SamplingConfig, *, seen: Tensor, counts: Tensor) -> Tensor:
    """Lowers the logits (B, V) of used tokens.

    seen (B, V), bool: the tokens in the prompt or the new text. counts (B, V): each token's count in the new text.
    The repetition penalty is CTRL's, but multiplies negative logits: dividing them would favour the token. Presence
    and frequency penalties are those of OpenAI's API.
    """
    if (theta := sampling.repetition_penalty) != 1:
        logits = torch.where(seen, torch.where(logits > 0, logits / theta, logits * theta), logits)
    if sampling.presence_penalty or sampling.frequency_penalty:
        logits = logits - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts
    return logits


def probabilities(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """logits (..., V) -> the probabilities (..., V) to sample from, float32, which sum to 1.

    Applies temperature and filters; penalties and constraints depend on the text and come before.
    """
    return list(filtered(logits, sampling))[-1][1]


def filtered(logits: Tensor, sampling: SamplingConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, probabilities (..., V)) after the temperature and after each filter that is on."""
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


# Each filter: probabilities (..., V) and its setting -> True for the tokens to keep, at least one.


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    k = min(k, probs.shape[-1])
    return top_k_mask(probs, k, threshold=probs.topk(k).values[..., -1:])


def keep_top_p(probs: Tensor, p: float, *, score: Tensor | None = None, candidates: int = 256) -> Tensor:
    """The fewest tokens, from the highest score (or probability) down, whose probabilities sum to at least p.

    Sorting the whole vocabulary costs as much as a small model's step, and few tokens usually suffice. So this takes
    the `candidates` highest scores, and more for the rows where they sum to less than p.
    """
    score = probs if score is None else score
    if p == 1:
        return torch.ones_like(probs, dtype=torch.bool)  # all of them, however the sum rounds
    scores, ids = score.topk(min(candidates, probs.shape[-1]))
    mass = probs.gather(-1, ids).cumsum(dim=-1)
    count = ((mass < p).sum(dim=-1, keepdim=True) + 1).clamp(max=mass.shape[-1])
    mask = top_k_mask(score, count, threshold=scores.gather(-1, count - 1))
    incomplete = mass[..., -1] < p  # these rows need more candidates
    if candidates < probs.shape[-1] and incomplete.any():
        mask[incomplete] = keep_top_p(probs[incomplete], p, score=score[incomplete], candidates=4 * candidates)
    return mask


def keep_min_p(probs: Tensor, p: float) -> Tensor:
    return probs >= p * probs.amax(dim=-1, keepdim=True)


def keep_typical(probs: Tensor, p: float) -> Tensor:
    entropy = torch.special.entr(probs).sum(dim=-1, keepdim=True)
    surprisal = -probs.log()
    return keep_top_p(probs, p, score=-(surprisal - entropy).abs())  # closest to the entropy first


FILTERS: dict[str, Callable[..., Tensor]] = {
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
}


def top_k_mask(score: Tensor, k: Tensor | int, *, threshold: Tensor) -> Tensor:
    """True (..., V) for exactly the k highest scores; threshold (..., 1) is the k-th. Ties keep the smaller ids."""
    mask = score >= threshold
    if (mask.sum(dim=-1, keepdim=True) > k).any():
        tied = score == threshold
        mask &= ~tied | (tied.cumsum(dim=-1) <= k - (mask & ~tied).sum(dim=-1, keepdim=True))
    return mask


def draw(probs: Tensor, keys: Sequence[int], *, max_nonzero: int | None = None) -> Tensor:
    """Draws one id from each row of probs (B, V), row i with the noise of keys[i]; returns (B,).

    The Gumbel-max trick: argmax(ln p - ln(-ln u)) is id i with probability p[i]; the argmax of p / -ln u is the same.
    Unlike inverse-CDF sampling, a change of 1e-6 in p changes the result only where two tokens are that close.
    max_nonzero: upper bound on the number of nonzero p in a row, if known.
    """
    device = probs.device
    if device.type == "mps":
        probs = probs.cpu()  # MPS has no float64
    if few := max_nonzero is not None and 8 * max_nonzero < probs.shape[-1]:
        probs, tokens = probs.topk(max_nonzero)
    else:
        tokens = torch.arange(probs.shape[-1], device=probs.device)
    exponential = uniform(keys, tokens).log_().neg_()  # -ln u
    best = (probs / exponential).argmax(dim=-1, keepdim=True)
    return (tokens.gather(-1, best) if few else best)[:, 0].to(device)


def uniform(keys: Sequence[int], tokens: Tensor) -> Tensor:
    """Uniform noise (B, N) in (0, 1), float64, for token ids (B, N), or (N,) if all rows ask for the same.

    Counter-based: number `token` of the SplitMix64 sequence that starts at keys[row] (Steele et al. 2014). So it is
    independent of the other rows and tokens and of the device.
    """
    golden, first, second = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # the paper's, as int64
    state = tokens * golden + torch.tensor(keys, device=tokens.device)[:, None]  # int64 arithmetic wraps around
    for shift, factor in ((30, first), (27, second), (31, 1)):
        state ^= (state >> shift).bitwise_and_((1 << 64 - shift) - 1)  # the mask makes the shift a logical one
        state *= factor
    # The upper 52 bits as an integer in [-2^51, 2^51), plus 2^51 and a half: an odd multiple of 2^-53, never 0 or 1.
    return (state >> 12).double().add_(2.0**51 + 0.5).mul_(2.0**-52)
