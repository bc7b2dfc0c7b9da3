"""Hugging Face's chat templates, which are Jinja, as prefixes and suffixes: recognized, never rendered.

A template is evaluated on short chats whose messages have unknown texts (see jinja_forms.py). What it writes around
these texts gives the prefixes and suffixes; they must then explain all these chats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..labelled.templates import ChatTemplate
from .jinja_forms import CONTENTS, TRIMMED, UNKNOWN, RefusedError, Template, UnsupportedError

TURNS = ["user", "assistant"] * 2  # the longest chat that is tried, and one with a system message before it
CONTENT = CONTENTS[0]  # stands for a message's text


class MisfitError(Exception):
    """No prefixes and suffixes explain what the template writes."""


def read_template(source: str, *, names: Mapping[str, str] | None = None) -> ChatTemplate | None:
    """Returns the template as prefixes and suffixes that render every chat as it does, or None.

    A chat has at most one system message, the first; then user and assistant take turns. A template that refuses system
    messages, or writes them inside the user's, has no role "system" in the result.
    names: the values of the variables that hold special tokens, such as bos_token and eos_token.
    """
    try:
        probes = Probes(Template(source), names or {})
        template = without_system(probes)
        probes.check(template, TURNS)
        try:
            whole = with_system(probes, template)
            probes.check(whole, TURNS)
            probes.check(whole, ["system", *TURNS])
        except (MisfitError, RefusedError):
            return template
        return whole
    except (UnsupportedError, MisfitError, RefusedError):
        return None


class Probes:
    """What a template writes for chats of given roles."""

    def __init__(self, template: Template, names: Mapping[str, str]) -> None:
        self.template, self.names = template, names
        self.trim: bool | None = None  # whether messages are trimmed; None: not yet known
        self.asks = True  # the template writes the prefix of an answer when it is asked to

    def around(self, roles: Sequence[str], *, prompt: bool = False) -> list[str]:
        """Returns the texts before, between and after the messages; with `prompt`, an answer is asked for."""
        variables = {"tools": None, "documents": None, "add_generation_prompt": prompt}  # as transformers sets them
        text = self.template.write(roles, {**self.names, **variables})
        trim = {CONTENTS[: len(roles)]: False, TRIMMED[: len(roles)]: True}.get("".join(UNKNOWN.findall(text)))
        if trim is None or trim is not (trim if self.trim is None else self.trim):
            raise MisfitError
        self.trim = trim
        return UNKNOWN.split(text)

    def check(self, template: ChatTemplate, roles: list[str]) -> None:
        """Raises MisfitError unless the first messages, in any number, are rendered as the Jinja template does."""
        messages = [{"role": role, "content": CONTENT} for role in roles]
        for stop in range(1 + (roles[0] == "system"), len(roles) + 1):
            ours = [template.segments(messages[:stop])]
            ours += [template.prompt(messages[:stop])] if self.asks and roles[stop - 1] == "user" else []
            for prompt, segments in enumerate(ours):
                theirs = CONTENT.join(self.around(roles[:stop], prompt=bool(prompt)))
                if "".join(segment.text for segment in segments) != theirs:
                    raise MisfitError


def without_system(probes: Probes) -> ChatTemplate:
    """The prefixes and suffixes of user and assistant: the text between two messages minus the part that is known."""
    _, user_suffix = probes.around(TURNS[:1])
    _, after_user, assistant_suffix = probes.around(TURNS[:2])
    assistant_prefix = without(after_user, prefix=user_suffix)
    first, _, after_assistant, _ = probes.around(TURNS[:3])
    user_prefix = without(after_assistant, prefix=assistant_suffix)
    probes.asks = probes.around(TURNS[:1]) != probes.around(TURNS[:1], prompt=True)
    if not assistant_suffix or (not probes.asks and assistant_prefix.isspace()):  # a prompt must not end in a space
        raise MisfitError
    roles = {"user": (user_prefix, user_suffix), "assistant": (assistant_prefix, assistant_suffix)}
    return ChatTemplate(roles, without(first, suffix=user_prefix), trim=bool(probes.trim))


def with_system(probes: Probes, template: ChatTemplate) -> ChatTemplate:
    """Adds the system message to a template whose start still includes a default one."""
    before, between, _ = probes.around(["system", "user"])
    suffix = without(between, suffix=template.roles["user"][0])
    start = start_of(probes, template, before)
    default: str | None = None
    if start != template.start:
        default = without(without(template.start, prefix=before), suffix=suffix)
    roles = {"system": (without(before, prefix=start), suffix), **template.roles}
    return ChatTemplate(roles, start, default, template.trim)


def start_of(probes: Probes, template: ChatTemplate, before: str) -> str:
    """The part of the text before a first system message that is not the message's prefix.

    A system message in the middle has the prefix alone. A template without those may start with bos_token.
    """
    try:
        _, prefix, _, _ = probes.around(["user", "system", "user"])
        return without(before, suffix=without(prefix, prefix=template.roles["user"][1]))
    except (MisfitError, RefusedError):
        if before.startswith(template.start):
            return template.start
        bos = probes.names.get("bos_token", "")
        return bos if before.startswith(bos) else ""


def without(text: str, *, prefix: str = "", suffix: str = "") -> str:
    if not (text.startswith(prefix) and text.endswith(suffix) and len(text) >= len(prefix) + len(suffix)):
        raise MisfitError
    return text[len(prefix) : len(text) - len(suffix)]
