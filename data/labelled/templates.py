"""Templates: how a text with its label, or a chat, becomes what a model reads. A checkpoint keeps them in task.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import InputError

TASK = "task.json"  # in a step directory
END = "<|endoftext|>"
SPECIAL = re.compile(r"<\|[^|<>]+\|>|<(?:start|end)_of_turn>|</?s>")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Segment:
    """A part of an example."""

    text: str
    learned: bool = False  # its tokens have loss
    special: bool = False  # names of special tokens in it are these tokens; elsewhere they are ordinary text


@dataclass(frozen=True)
class ChatTemplate:
    """A prefix and a suffix for the messages of each role. Special tokens are allowed in these and nowhere else.

    The model learns the assistant's messages and the suffix, which ends an answer.
    """

    roles: Mapping[str, tuple[str, str]]  # role -> (prefix, suffix)
    start: str = ""  # before the first message
    default_system: str | None = None  # the system message of a chat that starts with another role
    trim: bool = False  # messages lose the white space at both ends

    def segments(self, messages: Sequence[Mapping[str, str]]) -> tuple[Segment, ...]:
        """The messages as segments; joined, their texts are the rendered chat."""
        parts = [Segment(self.start, special=True)]
        turns = [(message["role"], message["content"]) for message in messages]
        if self.trim:
            turns = [(role, content.strip()) for role, content in turns]
        if self.default_system is not None and turns and turns[0][0] != "system":
            turns.insert(0, ("system", self.default_system))
        for role, content in turns:
            prefix, suffix = self.roles[role]
            learned = role == "assistant"
            parts += [Segment(prefix, special=True), Segment(content, learned), Segment(suffix, learned, special=True)]
        return tuple(part for part in parts if part.text)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> tuple[Segment, ...]:
        """The messages, and the prefix of the answer that the model is to write."""
        return (*self.segments(messages), Segment(self.roles["assistant"][0], special=True))

    def jinja(self) -> str:
        """The template as transformers reads it from tokenizer_config.json."""

        def quoted(text: str) -> str:
            return json.dumps(text, ensure_ascii=False)

        lines = ["{{ " + quoted(self.start) + " }}{% for message in messages %}"]
        if self.default_system is not None:
            prefix, suffix = self.roles["system"]
            default = quoted(prefix + self.default_system + suffix)
            lines.append(f"{{% if loop.first and message['role'] != 'system' %}}{{{{ {default} }}}}{{% endif %}}")
        content = "message['content'] | trim" if self.trim else "message['content']"
        for number, (role, (prefix, suffix)) in enumerate(self.roles.items()):
            test = f"{{% {'elif' if number else 'if'} message['role'] == {quoted(role)} %}}"
            lines.append(f"{test}{{{{ {quoted(prefix)} + {content} + {quoted(suffix)} }}}}")
        prefix = quoted(self.roles["assistant"][0])
        lines.append(f"{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prefix} }}}}{{% endif %}}")
        return "".join(lines)

    @staticmethod
    def of(value: Any, place: str) -> ChatTemplate:
        """Checks what a JSON file says. Raises InputError."""
        roles = value.get("roles") if isinstance(value, dict) else None
        start = value.get("start", "") if isinstance(value, dict) else None
        pairs = list(roles.values()) if isinstance(roles, dict) else []
        sound = all(isinstance(pair, list | tuple) and list(map(type, pair)) == [str, str] for pair in pairs)
        if not isinstance(roles, dict) or not sound or not {"user", "assistant"} <= roles.keys() <= set(ROLES):
            form = '{"roles": {"user": ["<|user|>", ""], "assistant": ["<|assistant|>", "<|endoftext|>"]}}'
            raise InputError(f"{place}: not a chat template; write a prefix and a suffix for each role, such as {form}")
        if not isinstance(start, str) or not roles["assistant"][1]:
            raise InputError(
                f"{place}: 'start' must be text, and the assistant's suffix, which ends an answer, not empty"
            )
        default, trim = value.get("default_system"), value.get("trim", False)
        if type(default) not in (str, type(None)) or (default is not None and "system" not in roles):
            raise InputError(f"{place}: 'default_system' must be text, and then there must be a role 'system'")
        if type(trim) is not bool:
            raise InputError(f"{place}: 'trim' must be true or false")
        return ChatTemplate({role: (pair[0], pair[1]) for role, pair in roles.items()}, start, default, trim)


CHAT_TEMPLATES = {
    "plain": ChatTemplate(
        {"system": ("", "\n\n"), "user": ("User:\n", "\n\n"), "assistant": ("Assistant:\n", END)},
    ),
    "chatml": ChatTemplate({role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}),
    "zephyr": ChatTemplate({role: (f"<|{role}|>\n", f"{END}\n") for role in ROLES}),
}


def chat_template(name: str) -> ChatTemplate:
    """A template by name, or from a JSON file. Raises InputError."""
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    path = Path(name).expanduser()
    try:
        return ChatTemplate.of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        known = ", ".join(CHAT_TEMPLATES)
        raise InputError(f"chat_template={name} is not one of {known}, nor a file: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"chat_template={name}: not JSON ({error})") from None


@dataclass(frozen=True)
class Task:
    """What a checkpoint was fine-tuned to do."""

    prompt: str = "{text}\n\nLabel:"
    completion: str = " {label}"
    labels: tuple[str, ...] = ()  # the label set; empty if the completions are free text
    temperature: float = 1.0  # divides the labels' log-probabilities: fitted on held-out examples
    chat: ChatTemplate | None = field(default=None)

    def prompt_of(self, text: str) -> str:
        return self.prompt.replace("{text}", text)

    def completion_of(self, label: str) -> str:
        return self.completion.replace("{label}", label)

    def changed(self, prompt: str | None, completion: str | None, labels: Sequence[str] = ()) -> Task:
        """The task with what is given. Another label set has no fitted temperature. Raises InputError."""
        task = replace(
            self,
            prompt=self.prompt if prompt is None else prompt,
            completion=self.completion if completion is None else completion,
        )
        if errors := check_templates(task.prompt, task.completion):
            raise InputError(*errors)
        return replace(task, labels=tuple(labels), temperature=1.0) if labels else task

    def save(self, directory: Path) -> None:
        (directory / TASK).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(directory: Path) -> Task | None:
        """The task of a checkpoint's step directory; None if it has none. Raises InputError for a damaged one."""
        path = directory / TASK
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            chat = values.get("chat")
            task = Task(
                values["prompt"],
                values["completion"],
                tuple(values["labels"]),
                float(values["temperature"]),
                None if chat is None else ChatTemplate.of(chat, str(path)),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); copy the checkpoint again") from None
        texts = (task.prompt, task.completion, *task.labels)
        if not all(isinstance(text, str) for text in texts) or not 0 < task.temperature < math.inf:
            raise InputError(f"{path} is damaged; copy the checkpoint again")
        return task


def check_templates(prompt: str, completion: str) -> list[str]:
    """Returns what is wrong with the templates of text and label, one line each."""
    found = []
    if prompt.count("{text}") != 1:
        found.append(f"prompt_template={prompt!r} must contain {{text}} once")
    if completion.count("{label}") != 1:
        found.append(f"completion_template={completion!r} must contain {{label}} once")
    return found


def unknown_special_tokens(template: ChatTemplate, known: Mapping[str, int]) -> list[str]:
    """Returns what looks like a special token in a template, as <|user|> does, but is not one of the tokenizer's."""
    texts = [template.start, *(text for pair in template.roles.values() for text in pair)]
    names = dict.fromkeys(name for text in texts for name in SPECIAL.findall(text))
    return [name for name in names if name not in known]
