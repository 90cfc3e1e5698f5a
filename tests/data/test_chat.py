"""Chat templates: the names that Hugging Face's templates count on, and a sandbox for what came with the weights."""

import datetime
import importlib.util

import pytest

from jaxalign.data.chat import ChatTemplate
from jaxalign.errors import UserError

USER = [{"role": "user", "content": "Hi"}]
TALK = [{"role": "system", "content": "Be <brief> & kind."}, *USER, {"role": "assistant", "content": "Hello."}]
# Everything that published templates use: trimmed blocks, loop controls, namespaces, tools, generation blocks.
FULL = """
{%- set ns = namespace(turns=0) %}
{{- bos_token }}
{%- if tools %}
    {{- "<tools>" + (tools | tojson) + "</tools>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "system" and not loop.first %}
        {{- raise_exception("system must come first") }}
    {%- endif %}
    {%- if message.content is none %}{% continue %}{% endif %}
    {%- if message.role == "assistant" %}
<|{{ message.role }}|>
{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}

    {%- else %}
<|{{ message["role"] }}|>
{{ message["content"] }}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
{%- endfor %}
{%- if add_generation_prompt %}
<|assistant|>
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{%- endif %}
{{- "#%d" | format(ns.turns) }}
"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_whole_conversation():
    template = ChatTemplate(FULL, TOKENS)
    text = template.render([*TALK, {"role": "user", "content": None}], add_generation_prompt=False)
    assert text == "<s><|system|>\nBe <brief> & kind.<|user|>\nHi<|assistant|>\nHello.</s>#3"
    assert template.render(USER) == "<s><|user|>\nHi<|assistant|>\n#1"
    assert template.render(USER, enable_thinking=False) == "<s><|user|>\nHi<|assistant|>\n<think></think>#1"


def test_json_is_not_escaped_for_html():
    tools = [{"name": "f", "description": "a < b & 'é'"}]
    assert """<tools>[{"name": "f", "description": "a < b & 'é'"}]</tools>""" in ChatTemplate(FULL, TOKENS).render(
        USER, tools=tools
    )
    source = "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, indent=1, ensure_ascii=true) }}"
    assert ChatTemplate(source).render(USER) == '{\n "a": "\\u00e9",\n "b": 1\n}'


def test_names_that_templates_ask_for_before_using_them():
    source = "{{ tools is none }} {{ documents is none }} {{ custom is defined }} {{ bos_token is defined }}"
    assert ChatTemplate(source).render(USER) == "True True False False"
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(USER) == str(datetime.datetime.now().year)


def test_a_variable_is_stronger_than_a_special_token():
    assert ChatTemplate("{{ bos_token }}", TOKENS).render(USER, bos_token="X") == "X"


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (FULL, [*USER, TALK[0]], "the chat template refuses this conversation: system must come first"),
        ("{{ messages[0].content + 1 }}", USER, "the chat template refuses this conversation: can only concatenate"),
        ("{{ messages[5].content.x }}", USER, "the chat template refuses this conversation: .*no element 5"),
        ("line\n{% if %}", USER, "the chat template is broken at its line 2: "),
        ("{{ ''.__class__.__mro__ }}", USER, "refuses this conversation: access to attribute '__class__'.* unsafe"),
        ("{{ messages.append(1) }}", USER, "refuses this conversation: access to attribute 'append'.* unsafe"),
        ("{{ 1 // (messages | length - 1) }}", USER, "refuses this conversation: .*by zero"),
        (FULL, [{"content": "Hi"}], "message 0 of the conversation must be a dict with 'role' and 'content'"),
        (FULL, [*USER, "Hi"], "message 1 of the conversation must be a dict"),
    ],
)
def test_what_goes_wrong_is_one_sentence(source, messages, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source, TOKENS).render(messages)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_renders_the_same():
    from transformers.utils.chat_template_utils import render_jinja_template

    for messages, prompt in ((TALK, False), (USER, True)):
        (expected,), _ = render_jinja_template([messages], chat_template=FULL, add_generation_prompt=prompt, **TOKENS)
        assert ChatTemplate(FULL, TOKENS).render(messages, add_generation_prompt=prompt) == expected
