"""A model card says what is known and nothing else, whatever characters are in names and paths."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, replace

import pytest

from data.exchange.model_card import ModelFacts, model_card

FULL = ModelFacts(
    name="plays",
    licence="Apache-2.0",
    origin="SmolLM2 by Hugging Face",
    family="LlamaForCausalLM",
    parameters=4_750_000,
    context=256,
    tokenizer="bpe",
    vocab_size=4097,
    corpus=["shakespeare", "wikipedia"],
    documents=10_071,
    n_bytes=10_190_000,
    step=1450,
    tokens=2_969_600,
    loss=3.98768,
    bits_per_byte=1.87654,
    proof=["largest difference of the logits: 2.1e-05"],
    path="out/plays_hf",
    chat=True,
)


def front(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    _, head, _ = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(head)


def snippet(card: str) -> ast.Module:
    fence = re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.MULTILINE | re.DOTALL)
    assert fence
    return ast.parse(fence[2])


def test_what_is_known_is_said():
    card = model_card(FULL)
    for part in (
        "# plays", "`LlamaForCausalLM`", "4,750,000", "256 tokens", "4,097 tokens", "`shakespeare`, `wikipedia`",
        "10,071", "10,190,000 bytes", "CC BY-SA 4.0", "1,450", "2,969,600 tokens", "3.9877 nats/token", "1.8765",
        "2.1e-05", "SmolLM2 by Hugging Face", "apply_chat_template", "'out/plays_hf'",
    ):  # fmt: skip
        assert part in card, part
    assert front(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["text-generation", "conversational"],
    }
    snippet(card)


def test_what_is_unknown_is_left_out():
    card = model_card(ModelFacts())
    assert re.findall(r"^## (.*)", card, re.MULTILINE) == ["Use", "Limits"]
    assert "None" not in card and "False" not in card and not re.search(r"^- .*:", card, re.MULTILINE)
    assert set(front(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "chat" not in card and "language:" not in card and "- conversational" not in card


@pytest.mark.parametrize("name", [field.name for field in fields(ModelFacts)])
def test_each_fact_alone_has_its_own_words(name):
    card, empty = model_card(replace(ModelFacts(), **{name: getattr(FULL, name)})), model_card(ModelFacts())
    assert card != empty
    added = [line for line in card.splitlines() if line not in empty.splitlines()]
    assert len(added) <= 8 and "None" not in card


@pytest.mark.parametrize(
    "odd", ["a`b``c", "x\n---\ny: 1", "<script>|", "\"\\'", "é 😀\x85\u2028\x7f", "```", "# *_[l](u)_*", "$"]
)
def test_odd_characters_stay_what_they_are(odd):
    facts = ModelFacts(
        name=odd, licence=odd, origin=odd, family=odd, tokenizer=odd, corpus=[odd], proof=[odd], path=odd
    )
    card = model_card(facts)
    head = front(card)
    assert head["license"] == odd.lower() and set(head) == {"library_name", "pipeline_tag", "license", "tags"}
    assert card.count("\n---\n") == 1
    path = next(node for node in ast.walk(snippet(card)) if isinstance(node, ast.Assign))
    assert ast.literal_eval(path.value) == odd
    inline = [token.children for token in markdown_it(card) if token.type == "inline"]
    assert {child.type for children in inline for child in children} <= {"text", "text_special", "code_inline"}
    said = ["".join(child.content for child in children) for children in inline]
    shown = " ".join(odd.split())
    family = [children[-1] for children in inline if children[0].content == "Family: "]
    assert shown in said and f"Origin: {shown}" in said and said.count(shown) == 2  # the heading and the proof
    assert [(child.type, child.content) for child in family] == [("code_inline", shown)]


def markdown_it(card: str) -> list:
    return pytest.importorskip("markdown_it").MarkdownIt().parse(card.partition("\n---\n")[2])
