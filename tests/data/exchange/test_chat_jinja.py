"""Chat templates of other programs are recognized exactly, or not at all, and nothing in them is run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.exchange.chat_jinja import read_template
from data.labelled.templates import CHAT_TEMPLATES, ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = """{%- for message in messages %}
    {#- Each message, whoever says it. #}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- generation %}{{ message["content"] }}{% endgeneration %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and
            not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<tool_call>' + message.tool_calls[0].name | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_1 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none and tools is defined %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message["
    "'content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)
ALPACA = """{{ bos_token if bos_token is defined else '' }}{% for m in messages %}
{%- if m.role in ['system'] %}{{ m.content.strip() + '\n\n' }}
{%- else %}{{ '### ' + ('Instruction' if m.role == 'user' else 'Response') + ':\\n' + m.content|trim
    + (eos_token if m.role == 'assistant' else '') ~ '\n\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}"""
VICUNA = """{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}{% else %}
    {{- message['role'].upper() + ': ' + message['content'] + (eos_token if not message['role'] == 'user' else ' ') }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: '}}
{%- endif %}"""
SCOPES = """{% raw %}{{ raw }}{% endraw %}{{ ' none' if tools is defined and strftime_now is defined }}
{% set who = 'x' %}
{% for message in messages %}
    {% set who = message.role %}
    {% with who = '|' ~ who %}{{ who }} {% endwith %}
{%- generation %}{% set who = 'lost' %}{{ message.content }}{% endgeneration %}{{ '\\N{BULLET}\\x21' ~ who }}
{% endfor %}
{{- '' if who == 'x' else 'wrong' }}
{%- if add_generation_prompt %}{{ '|assistant ' if true }}{% endif %}"""
FORMS = {  # name -> template, the roles that ours has
    "smollm2": (SMOLLM2, 3),
    "chatml": (CHATML, 3),
    "chatml with tools": (TOOLS, 3),
    "zephyr": (ZEPHYR, 3),
    "llama 3": (LLAMA_3, 3),
    "llama 3.1": (LLAMA_3_1, 3),
    "gemma": (GEMMA, 2),
    "mistral": (MISTRAL, 2),
    "alpaca": (ALPACA, 3),
    "vicuna": (VICUNA, 3),
    "scopes": (SCOPES, 3),
    **{f"our {name}": (template.jinja(), 3) for name, template in CHAT_TEMPLATES.items()},
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
USER, ANSWER = 'It\'s "{{ x }}" <|im_end|>\nß 😀', "1 < 2;\n\n- yes"


def chat(*roles: str) -> list[dict[str, str]]:
    texts = {"system": "Be brief.", "user": USER, "assistant": ANSWER}
    return [{"role": role, "content": texts[role]} for role in roles]


def text(segments) -> str:
    return "".join(segment.text for segment in segments)


@pytest.fixture(scope="module")
def theirs():
    """Renders a chat as transformers does."""
    pytest.importorskip("jinja2")
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template

    def rendered(source: str, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
        [found], _ = render([messages], chat_template=source, add_generation_prompt=prompt, **NAMES)
        return found

    return rendered


@pytest.mark.parametrize("name", FORMS)
def test_a_known_form_renders_as_jinja_does(name, theirs):
    source, n_roles = FORMS[name]
    template = read_template(source, names=NAMES)
    assert template is not None and len(template.roles) == n_roles
    turns = ["user", "assistant"] * 3
    starts = [[], ["system"]] if "system" in template.roles else [[]]
    for start in starts:
        for stop in range(1, len(turns)):
            messages = chat(*start, *turns[:stop])
            assert text(template.segments(messages)) == theirs(source, messages)
            if stop % 2 and name != "mistral":  # whose answers have no prefix
                assert text(template.prompt(messages)) == theirs(source, messages, prompt=True)
    if template.trim:
        messages = [{"role": "user", "content": " \n padded "}]
        assert text(template.prompt(messages)) == theirs(source, messages, prompt=True)


def test_forms_become_what_one_would_write():
    roles = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
    assert read_template(CHATML) == CHAT_TEMPLATES["chatml"] == ChatTemplate(roles)
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert read_template(SMOLLM2) == ChatTemplate(roles, "", default)
    assert read_template(TOOLS) == ChatTemplate(roles, "", "You are kind.")
    llama = {
        role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
        for role in ("system", "user", "assistant")
    }
    assert read_template(LLAMA_3, names={"bos_token": "<s>"}) == ChatTemplate(llama, "<s>", None, trim=True)


PIECES = st.text(st.sampled_from("ab \n\"'\\{}%#|-<>é😀\x7f\x01"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, min_size=8, max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_what_we_write_we_read_back(pieces, system, default, trim):
    roles = {"user": (pieces[0], pieces[1]), "assistant": (pieces[2], pieces[3] + "x")}
    if system:
        roles["system"] = (pieces[4], pieces[5] + "y")  # with both empty, a default message would be a start
    template = ChatTemplate(roles, pieces[6], pieces[7] if system and default else None, trim)
    assert read_template(template.jinja()) == template


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=8, max_size=8), st.booleans())
def test_what_we_write_jinja_reads_alike(theirs, pieces, trim):
    roles = {"user": (pieces[0], pieces[1]), "assistant": (pieces[2], pieces[3]), "system": (pieces[4], pieces[5])}
    template = ChatTemplate(roles, pieces[6], pieces[7], trim)
    for roles_of in (["user"], ["system", "user"], ["user", "assistant", "user"]):
        messages = chat(*roles_of)
        assert text(template.segments(messages)) == theirs(template.jinja(), messages)
        assert text(template.prompt(messages)) == theirs(template.jinja(), messages, prompt=True)


def around(inside: str) -> str:
    """A chatml template with something after the text of each message."""
    return CHATML.replace('{{ message["content"] }}', '{{ message["content"] }}' + inside)


HOSTILE = {
    "class": around("{{ ''.__class__.__mro__ }}"),
    "class of a message": around("{{ message.__class__ }}"),
    "item": around("{{ message['__class__'] }}"),
    "method": around("{{ message.items() }}"),
    "method as a field": around("{{ message.items }}"),
    "attr": around("{{ message|attr('__class__') }}"),
    "call": around("{{ cycler.__init__.__globals__.os.popen('id').read() }}"),
    "global": around("{{ lipsum }}"),
    "date": around("{{ strftime_now('%Y') }}"),
    "import": "{% import 'os' as os %}" + CHATML,
    "include": "{% include '/etc/passwd' %}" + CHATML,
    "extends": "{% extends 'x' %}" + CHATML,
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}" + CHATML,
    "raw": "{% raw %}" + CHATML + "{% endraw %}",
    "self": around("{{ self }}{{ self._TemplateReference__context }}"),
    "namespace": "{% set ns = namespace(a=1) %}" + CHATML,
    "range": around("{% for i in range(1000000000) %}x{% endfor %}"),
    "nested loops": around("{% for a in messages %}" * 15 + "x" + "{% endfor %}" * 15),
    "deep blocks": around("{% if true %}" * 3000 + "x" + "{% endif %}" * 3000),
    "deep brackets": around("{{ " + "(" * 20_000 + "'x'" + ")" * 20_000 + " }}"),
    "deep not": around("{% if " + "not " * 10_000 + "true %}x{% endif %}"),
    "many terms": around("{{ " + "'x' + " * 8_000 + "'x' }}"),
    "doubling": "{% set x = 'x' %}" + "{% set x = x + x %}" * 60 + around("{{ x }}"),
    "doubling contents": around("{% set x = message.content %}" + "{% set x = x + x %}" * 60),
    "power": around("{{ 9**9**9 }}"),
    "repeated": around("{{ 'x' * 1000000000 }}"),
    "format": around("{{ '%1000000000d' % 1 }}"),
    "center": around("{{ 'x'|center(1000000000) }}"),
    "1 MB of text": "x" * 1_000_000 + CHATML,
    "1 MB in a string": around("{{ '" + "x" * 1_000_000 + "' }}"),
    "openings": "{{" * 30_000,
    "quotes": "{{ " + "'" * 60_001,
    "escapes": around("{{ '" + "\\" * 50_001),
    "comments": "{#" * 30_000,
    "spaces": "{{ x" + " " * 60_000 + "y }}" + CHATML + "{{ 1 1 }}",
    "content decides": around("{% if message.content == 'x' %}secret{% endif %}"),
    "content's truth": around("{% if message.content %}secret{% endif %}"),
    "content's part": around("{% if 'x' in message.content %}secret{% endif %}"),
    "a late message": around("{% if loop.index0 == 7 %}secret{% endif %}"),
    "content twice": around('{{ message["content"] }}'),
    "content's stand-in": around("\ufdd0"),
    "content's stand-in escaped": around("{{ '\\ufdd0' }}"),
    "generation in a string": around("{{ '{% generation %}' }}"),
    "no content": CHATML.replace('message["content"]', "'x'"),
    "odd escape": around("{{ '\\N{NO SUCH NAME}' }}"),
    "argument": around("{{ 'x'.upper('lower') }}"),
    "keyword": around("{{ 'x' | trim(chars='x') }}"),
    "function as text": around("{{ namespace ~ '' }}"),
    "two variables": "{% for a, b in messages %}{% endfor %}" + CHATML,
    "field set": "{% set message.role = 'x' %}" + CHATML,
    "long number": around("{{ " + "9" * 60_000 + " }}"),
    "deep fields": around("{{ x" + ".x" * 30_000 + " }}"),
    "long comment": "{#" + "x" * 70_000 + "#}" + CHATML,
    "silent loops": "{% for a in messages %}" * 7 + "{% endfor %}" * 7 + CHATML,
    "loop with a condition": CHATML.replace("in messages", "in messages if message.role != 'system'"),
    "remainder of 0": around("{{ 'x' if loop.index0 % 0 }}"),
    "stand-ins": CHATML.replace('message["content"]', f"{list(map(chr, range(0xFDD0, 0xFDE0)))}[loop.index0]"),
    "step of 0": around("{% for m in messages[::0] %}{% endfor %}"),
    "no end of a tag": CHATML + "{{ 'x",
    "no end of a block": CHATML + "{% if true %}",
    "nothing": "",
    "no template": "Hello {world}",
    "one half of a loop": "{% endfor %}",
    "shuffled": "{% for m in messages[1:] %}{{ m.content }}{% endfor %}{{ messages[0].content }}",
}


def test_the_template_around_what_is_hostile_is_read():
    assert read_template(around("{{ '' }}")) == CHAT_TEMPLATES["chatml"]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_or_unknown_is_not_read(name):
    source = HOSTILE[name]
    assert read_template(source) is None
