"""Conversations -> text by the model's own chat template (jinja2, sandboxed).

A template is a program that came with the weights. It runs in jinja2's immutable sandbox with the names that Hugging
Face's templates count on: `raise_exception`, `strftime_now`, `tojson`, the special tokens, `add_generation_prompt`,
`break`/`continue`, and `{% generation %}` blocks.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from jaxalign.errors import UserError


class ChatTemplate:
    """One chat template.

    Args:
        source: the jinja2 text.
        special_tokens: names a template may use (`bos_token`, `eos_token`, `pad_token`, ...) with their text.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        self.source = source
        self.special_tokens = dict(special_tokens or {})

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as text.

        Args:
            messages: dicts with "role" and, as a rule, "content".
            add_generation_prompt: end with what opens the assistant's answer.
            variables: more names for the template (`tools`, `enable_thinking`, ...).

        Raises:
            UserError: a message has no role, or the template refuses the conversation or fails on it.
        """
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message:
                raise UserError(f"message {number} of the conversation must be a dict with 'role' and 'content'")
        names = {"tools": None, "documents": None, **self.special_tokens, **variables}
        try:
            return self._compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **names)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is broken at its line {error.lineno}: {error.message}") from error
        except Exception as error:  # a template is a program and can fail in any way
            raise UserError(f"the chat template refuses this conversation: {error}") from error

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        return environment.from_string(self.source)


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's tokens; for the text it is its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which would put &lt; into prompts.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
