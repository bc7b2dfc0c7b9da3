"""The expressions that cut text into pretokens elsewhere, and the names that other programs give them.

The expression in a file comes from a stranger, and a regular expression can be written to run for years. So only the
known ones are read, and an expression is recognized by its spelling.
"""

from __future__ import annotations

from dataclasses import dataclass

from ... import InputError
from ...tokenizers.pretokenize import PATTERNS

ANYTHING = r"|[\s\S]"  # follows our exported expressions: what they match nothing of is cut into characters
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NANOCHAT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,%s}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Cut:
    """A way to cut text: our expression, and how it is written elsewhere.

    steps: elsewhere, several expressions can follow one another, each cutting the pieces of the one before.
    pre: values of tokenizer.ggml.pre, the first of which is written.
    """

    expression: str
    steps: tuple[tuple[str, ...], ...]
    pre: tuple[str, ...] = ()


CUTS = {
    "gpt2": Cut(PATTERNS["gpt2"], ((GPT2,),), ("gpt-2", "mpt", "olmo", "jais", "phi-2")),
    # Each digit is cut out first, so white space before it is the end of a piece.
    "smollm": Cut(
        r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
        ((r"\p{N}", GPT2),),
        ("smollm", "starcoder", "refact"),
    ),
    "llama3": Cut(LLAMA3, (), ("llama-bpe", "llama3", "llama-v3")),
    "qwen2": Cut(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), (), ("qwen2",)),
    "gpt4o": Cut(GPT4O, (), ("gpt-4o",)),
    # tiktoken's own spelling of cl100k_base is not here: `{1,3}+` and `$` mean something else in tokenizer.json.
    "gpt4": Cut(PATTERNS["gpt4"], ()),
    "nanochat": Cut(NANOCHAT % 2, ()),
    "nanochat, three digits": Cut(NANOCHAT % 3, ()),
}
BY_STEPS = {steps: cut for cut in CUTS.values() for steps in ((cut.expression,), *cut.steps)}
BY_PRE = {pre: cut for cut in CUTS.values() for pre in cut.pre}


def expression_of(steps: tuple[str, ...], *, place: str, trusted: str | None = None) -> str:
    """Returns our expression for those of a file. Raises InputError if they are neither known nor the trusted one."""
    plain = tuple(step.removesuffix(ANYTHING) for step in steps)
    if cut := BY_STEPS.get(steps) or BY_STEPS.get(plain):
        return cut.expression
    if trusted is not None and plain == (trusted,):
        return trusted
    what = " and then ".join(repr(step[:60]) for step in steps) or "nothing"
    raise InputError(
        f"{place}: the text is cut by {what[:200]}, which is not one of the known expressions ({', '.join(CUTS)}): "
        "another program's expression is never run; add it to data/exchange/byte_level/patterns.py if you trust it"
    )


def pre_of(expression: str) -> str | None:
    """Returns the name that GGUF files have for this expression, or None."""
    cut = next((cut for cut in CUTS.values() if cut.expression == expression), None)
    return cut.pre[0] if cut and cut.pre else None
