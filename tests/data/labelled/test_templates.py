"""Chat templates: ten well-known forms render alike in training, in sampling and as Jinja; task.json survives."""

from __future__ import annotations

import json

import jinja2
import pytest

from data import InputError
from data.labelled.examples import Example
from data.labelled.rows import Rows
from data.labelled.templates import CHAT_TEMPLATES, ChatTemplate, Task, chat_template, unknown_special_tokens
from data.tokenizers.build import TokenizerConfig, build

END = "<|endoftext|>"
FORMS = {
    **CHAT_TEMPLATES,
    "llama-3": ChatTemplate(
        {
            role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
            for role in ("system", "user", "assistant")
        },
        start="<|begin_of_text|>",
    ),
    "llama-2": ChatTemplate({"user": ("<s>[INST] ", " [/INST]"), "assistant": (" ", " </s>")}),
    "gemma": ChatTemplate(
        {
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
        start="<bos>",
    ),
    "phi-3": ChatTemplate({role: (f"<|{role}|>\n", "<|end|>\n") for role in ("system", "user", "assistant")}),
    "alpaca": ChatTemplate(
        {"system": ("", "\n\n"), "user": ("### Instruction:\n", "\n\n"), "assistant": ("### Response:\n", END)}
    ),
    "vicuna": ChatTemplate({"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", "</s>")}),
    "user-assistant": ChatTemplate(
        {
            "user": ("<|user_start|>", "<|user_end|>"),
            "assistant": ("<|assistant_start|>", "<|assistant_end|>"),
        },
        start="<|bos|>",
    ),
}
CHATS = [
    [("user", "What rhymes with 'moon'?"), ("assistant", 'June — and "spoon".')],
    [("user", "1 < 2 && 3 > 2?"), ("assistant", "Yes.\n\tBoth."), ("user", "És 4?"), ("assistant", "{{ no }} \\n 😀")],
    [("user", " leading space"), ("assistant", "trailing space ")],
]


def messages(chat, template: ChatTemplate) -> list[dict[str, str]]:
    turns = [{"role": role, "content": content} for role, content in chat]
    return [{"role": "system", "content": "Be brief."}, *turns] if "system" in template.roles else turns


@pytest.mark.parametrize("name", FORMS)
def test_a_template_renders_alike_everywhere(name):
    template = FORMS[name]
    exported = jinja2.Environment().from_string(template.jinja())
    names = unknown_special_tokens(template, {END: 0})
    tokenizer = build(TokenizerConfig(kind="byte", special_tokens=names), [])
    for chat in CHATS:
        turns = messages(chat, template)
        segments = template.segments(turns)
        text = "".join(segment.text for segment in segments)
        assert exported.render(messages=turns) == text
        rows = Rows([Example("", "", chat=segments)], tokenizer, context=500)
        ids = rows.ids[0].tolist()
        assert tokenizer.decode(ids) in (text, END + text)  # the end token where the first segment would be empty
        prompt = "".join(segment.text for segment in template.prompt(turns[:-1]))
        assert exported.render(messages=turns[:-1], add_generation_prompt=True) == prompt
        assert text.startswith(prompt + turns[-1]["content"])
        assert tokenizer.decode(rows.prompt_ids(0).tolist()).endswith(prompt)
        special = [tokenizer.special_tokens[name] for name in names]
        count = sum(text.count(name) for name in names)
        assert sum(ids.count(token) for token in special) == count
        assert not unknown_special_tokens(template, tokenizer.special_tokens)


def test_a_template_is_read_by_name_or_from_a_file(tmp_path):
    assert chat_template("chatml") is CHAT_TEMPLATES["chatml"]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"roles": {"user": ["U", ""], "assistant": ["A", END]}, "start": "S"}))
    assert chat_template(str(path)) == ChatTemplate({"user": ("U", ""), "assistant": ("A", END)}, "S")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ("[]", "not a chat template"),
        ('{"roles": {"user": ["U", ""]}}', "not a chat template"),
        ('{"roles": {"user": ["U"], "assistant": ["A", "E"]}}', "not a chat template"),
        ('{"roles": {"user": ["U", ""], "assistant": ["A", ""]}}', "suffix, which ends an answer, not empty"),
        ('{"roles": {"user": ["U", ""], "assistant": ["A", "E"], "tool": ["", ""]}}', "not a chat template"),
        ('{"roles": {"user": ["U", ""], "assistant": ["A", "E"]}, "start": 1}', "'start' must be text"),
        ('{"roles": {"user": ["U", ""], "assistant": ["A", "E"]}, "default_system": "S"}', "must be a role 'system'"),
        ('{"roles": {"user": ["U", ""], "assistant": ["A", "E"]}, "trim": 1}', "'trim' must be true or false"),
    ],
)
def test_a_wrong_template_file_is_refused(tmp_path, content, message):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        chat_template(str(path))
    with pytest.raises(InputError, match=r"chat_template=chatlm is not one of plain, chatml, zephyr"):
        chat_template("chatlm")


def test_a_chat_without_a_system_message_gets_the_default_one(tmp_path):
    template = ChatTemplate(CHAT_TEMPLATES["chatml"].roles, "<s>", " Be kind.", trim=True)
    exported = jinja2.Environment().from_string(template.jinja())
    turns, own = [{"role": "user", "content": " Hi\n"}], [{"role": "system", "content": "Be brief. "}]
    system = "<s><|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    for messages, said in ((turns, " Be kind."), (own + turns, "Be brief.")):
        text = "".join(segment.text for segment in template.segments(messages))
        assert text == system.replace("{}", said) == exported.render(messages=messages)
    assert "".join(segment.text for segment in template.segments([])) == "<s>" == exported.render(messages=[])
    Task(chat=template).save(tmp_path)
    assert Task.load(tmp_path) == Task(chat=template)
    saved = json.loads((tmp_path / "task.json").read_text())  # as versions without these two fields wrote it
    del saved["chat"]["default_system"], saved["chat"]["trim"]
    (tmp_path / "task.json").write_text(json.dumps(saved))
    assert Task.load(tmp_path) == Task(chat=ChatTemplate(template.roles, "<s>"))


def test_a_task_is_saved_and_loaded(tmp_path):
    assert Task.load(tmp_path) is None
    task = Task("Is {text} good?", " {label}!", ("yes", "nö"), 1.7, FORMS["gemma"])
    task.save(tmp_path)
    assert Task.load(tmp_path) == task
    assert (task.prompt_of("{label}"), task.completion_of("yes")) == ("Is {label} good?", " yes!")
    good = json.loads((tmp_path / "task.json").read_text())
    for change in (
        {"temperature": 0},
        {"temperature": "x"},
        {"labels": [1]},
        {"labels": 5},
        {"prompt": None},
        {"chat": 1},
    ):
        (tmp_path / "task.json").write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=r"task\.json"):
            Task.load(tmp_path)
