"""The README.md of an exported model: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..corpus.sources import licence_notes


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model. What is None or empty is left out of the card."""

    name: str = "model"
    licence: str | None = None  # of the weights; an SPDX identifier
    origin: str | None = None  # the attribution of a model from elsewhere that this one comes from
    family: str | None = None  # such as LlamaForCausalLM
    parameters: int | None = None
    context: int | None = None  # tokens
    tokenizer: str | None = None  # its kind
    vocab_size: int | None = None
    corpus: Sequence[str] = ()  # names of built-in corpora, or paths
    documents: int | None = None
    n_bytes: int | None = None  # of text
    step: int | None = None
    tokens: int | None = None  # that it was trained on
    loss: float | None = None  # nats per token on the validation split
    bits_per_byte: float | None = None
    proof: Sequence[str] = ()  # what a comparison with the exported model found, one line each
    path: str | None = None  # of the exported folder
    chat: bool = False  # it has a chat template


def model_card(facts: ModelFacts) -> str:
    """Returns the card, in Markdown with YAML in front, as the Hugging Face hub reads it."""
    model = [
        ("Family", facts.family and code(facts.family)),
        ("Parameters", count(facts.parameters)),
        ("Context", facts.context is not None and f"{facts.context:,} tokens"),
        ("Tokenizer", facts.tokenizer and code(facts.tokenizer)),
        ("Vocabulary", facts.vocab_size is not None and f"{facts.vocab_size:,} tokens"),
        ("Origin", facts.origin and plain(facts.origin)),
    ]
    data = [
        ("Corpus", ", ".join(map(code, facts.corpus))),
        ("Documents", count(facts.documents)),
        ("Text", facts.n_bytes is not None and f"{facts.n_bytes:,} bytes"),
        *(("Licence", plain(note)) for note in licence_notes(list(facts.corpus))),
    ]
    figures = [
        ("Step", count(facts.step)),
        ("Trained on", facts.tokens is not None and f"{facts.tokens:,} tokens"),
        ("Validation loss", facts.loss is not None and f"{facts.loss:.4f} nats/token"),
        ("Validation bits/byte", facts.bits_per_byte is not None and f"{facts.bits_per_byte:.4f}"),
    ]
    parts = [
        front_matter(facts),
        f"# {plain(facts.name)}\n\nA decoder-only language model: it predicts the next token of a text.",
        listed("Model", model),
        listed("Data", data),
        listed("Figures", figures),
        "## Use\n\n" + fenced(usage(facts), "python"),
        listed("Comparison of this export with the original", [("", plain(line)) for line in facts.proof]),
        "## Limits\n\nIt repeats what its texts say, true or not; check its answers before you rely on them.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: ModelFacts) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if facts.licence:
        lines.append(f"license: {yaml_text(facts.licence.lower())}")
    lines += ["tags:", "- text-generation", *(["- conversational"] if facts.chat else []), "---"]
    return "\n".join(lines)


def usage(facts: ModelFacts) -> str:
    """Python that loads the model; with a chat template it asks, otherwise it continues a text."""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"path = {facts.path or '.'!a}",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "model = AutoModelForCausalLM.from_pretrained(path)",
    ]
    if facts.chat:
        lines += [
            'messages = [{"role": "user", "content": "Hello"}]',
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",',
            "                                       return_dict=True)",
        ]
    else:
        lines.append('inputs = tokenizer("Listen to your", return_tensors="pt")')
    lines += [
        "output = model.generate(**inputs, max_new_tokens=50)",
        "print(tokenizer.decode(output[0]))",
    ]
    return "\n".join(lines)


def listed(title: str, entries: Sequence[tuple[str, str | bool | None]]) -> str:
    """A section with the known entries as a list; nothing if none is known."""
    lines = [f"- {name}: {text}" if name else f"- {text}" for name, text in entries if text]
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def plain(text: str) -> str:
    """The text on one line, in which Markdown and HTML see nothing of theirs."""
    return re.sub(r"([\\`*_\[\]<>#|~&!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """The text as code on one line, between more backticks than it has in a row."""
    text = " ".join(text.split())
    ticks = "`" * (longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def fenced(text: str, language: str) -> str:
    fence = "`" * max(3, longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def longest_run(text: str) -> int:
    """The largest number of backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def yaml_text(text: str) -> str:
    """The text as a string of YAML in double quotes, with only printable ASCII characters."""
    shown = (c if " " <= c <= "~" else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))
    return "".join(shown)
