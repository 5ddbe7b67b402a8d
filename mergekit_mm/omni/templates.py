"""Chat templates: what a donor's template writes for its modality, and one template for all modalities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

# For a host without a chat template, or with one that renders neither plain nor listed text.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}{{ message['role'] | upper + ': ' + message['content'] + '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)

# Turns lists of parts into text, which the host's template reads, with a placeholder token for each input.
_FLATTEN = """\
{%%- set omni = namespace(messages=[]) -%%}
{%%- for message in messages -%%}
{%%- set part = namespace(text='') -%%}
{%%- if message['content'] is string -%%}{%%- set part.text = message['content'] -%%}
{%%- else -%%}{%%- for item in message['content'] or [] -%%}
{%%- if item['type'] == 'text' -%%}{%%- set part.text = part.text + item['text'] -%%}
%(media)s{%%- else -%%}{{ raise_exception('this model takes no content of type ' + item['type']) }}
{%%- endif -%%}
{%%- endfor -%%}{%%- endif -%%}
{%%- set omni.messages = omni.messages + [dict(message, content=%(content)s)] -%%}
{%%- endfor -%%}
{%%- set messages = omni.messages -%%}
"""
_PLACEHOLDER = "{%%- elif item['type'] == '%s' -%%}{%%- set part.text = part.text + '%s' -%%}\n"
_TEXT = "What is it?"


def omni_template(templates: Iterable[Any], placeholders: dict[str, str], **special_tokens: Any) -> str:
    """A chat template over content lists of text and the modalities of `placeholders` (modality -> token).

    It renders text as the first of `templates` does that can render plain or listed content, or else as
    `PLAIN_TEMPLATE`, with a placeholder token for each image, video or audio. Of a dict of templates, "default" counts.
    """
    media = "".join(_PLACEHOLDER % (modality, token.replace("'", "\\'")) for modality, token in placeholders.items())
    for template in templates:
        template = template.get("default") if isinstance(template, dict) else template
        for content in ("part.text", "[{'type': 'text', 'text': part.text}]"):
            whole = _FLATTEN % {"media": media, "content": content} + (template or "")
            if "probe me" in (_render(whole, "probe me", **special_tokens) or ""):
                return whole
    return _FLATTEN % {"media": media, "content": "part.text"} + PLAIN_TEMPLATE


def media_snippet(donor: Any, modality: str, token: str) -> str:
    """The text for one input of a modality: a donor's placeholder `token` with the special tokens around it.

    It is what the donor's chat template writes, for instance `<|vision_start|><|image_pad|><|vision_end|>`. Where the
    template writes another token and the processor puts the placeholder there itself (Gemma 3), it is that token with
    its surroundings. Without a template, or with one that writes neither, it is the placeholder token alone.
    """
    written, specials = _written(donor, modality), special_tokens(donor.tokenizer)
    candidates = (token, str(getattr(donor, f"{modality}_token", None) or token))
    found = next((each for each in candidates if written.count(each) == 1), None)
    if found is None:
        return token
    before, after = written.split(found)
    token = found
    while ends := [s for s in specials if before.endswith(s)]:
        longest = max(ends, key=len)
        token, before = longest + token, before.removesuffix(longest)
    while begins := [s for s in specials if after.startswith(s)]:
        longest = max(begins, key=len)
        token, after = token + longest, after.removeprefix(longest)
    return token


def space_after(donor: Any, modality: str) -> str:
    """The line break or other space that a donor's chat template writes between an image, video or audio and text."""
    written = _written(donor, modality)
    return written[len(written.rstrip()) :]


def _written(donor: Any, modality: str) -> str:
    """What a donor's chat template writes for one input of a modality before a text; empty without a template."""
    template, tokenizer = getattr(donor, "chat_template", None), donor.tokenizer
    if not isinstance(template, str):
        return ""
    text = {"type": "text", "text": _TEXT}
    bare = _render(template, [text], **tokenizer.special_tokens_map)
    full = _render(template, [{"type": modality}, text], **tokenizer.special_tokens_map)
    if not bare or not full:
        return ""
    start = _alike(bare, full)
    return full[start : len(full) - _alike(bare[start:][::-1], full[::-1])]


def _alike(a: str, b: str) -> int:
    """The number of equal characters at the beginning of both."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def special_tokens(tokenizer: Any) -> set[str]:
    """All special tokens of a tokenizer: those with a role, such as the end of a text, and those that were added."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return {token for token in {*tokenizer.all_special_tokens, *added} if token}


def _render(template: str, content: Any, **special_tokens: Any) -> str | None:
    """One user message as the template renders it; None when the template fails."""
    conversation = [{"role": "user", "content": content}]
    try:
        rendered, _ = render_jinja_template(conversations=[conversation], chat_template=template, **special_tokens)
    except Exception:  # a template may raise errors of any type, some of them on purpose
        return None
    return str(rendered[0])
