"""HTML and SVG as escaped text, and data inside of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

HERE = Path(__file__).parent
# Characters that no one sees, or that turn around the order of those beside them: controls but tab and newline, marks
# of direction, and halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with controls and marks of direction written out, such as ⟨U+202E⟩, so that it shows what it holds."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.replace("\r\n", "\n"))


def _shown(value: Any) -> Any:
    """What a template puts in: `Markup` as it is, other texts `visible`, as the template escapes them afterwards."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(text: str) -> Markup:
    """A name that a browser may break into lines after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/-])(?=[^_/-])", visible(text)))


@cache
def templates() -> Environment:
    """The templates of this room. Texts put into one are escaped and `visible`; a name that is missing fails."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["breakable"] = breakable
    return made


def render(template: str, **values: Any) -> Markup:
    """A template of this room with these values, as HTML."""
    return Markup(templates().get_template(template).render(values))


def tag(name: str, content: str | Iterable[str] = "", **attributes: Any) -> Markup:
    """An element with escaped attributes and content.

    content: a text, which is escaped unless it is `Markup`, or several of them. attributes: `class_` is `class`, and
    every other `_` is a `-`; None and False leave an attribute out, True gives it no value.
    """
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(_shown(_short(value)))}"')
    inner = Markup("").join(map(_shown, [content] if isinstance(content, str) else content))
    return Markup(f"<{name}{''.join(parts)}>{inner}</{name}>")


def _short(value: Any) -> Any:
    """A coordinate to a tenth of a pixel, so that a page is the same on all machines and no longer than it must be."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def json_block(identity: str, data: Any) -> Markup:
    """Data as JSON that no text in it can end, for a script that reads it by `JSON.parse` of the element's text.

    Texts are made `visible`. ValueError: a number is not finite, which JSON cannot say.
    """
    text = json.dumps(_visible_within(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Markup(text), type="application/json", id=identity)


def _visible_within(data: Any) -> Any:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, dict):
        return {_visible_within(key): _visible_within(value) for key, value in data.items()}
    return [_visible_within(each) for each in data] if isinstance(data, (list, tuple)) else data
