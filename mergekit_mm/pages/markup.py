"""HTML and SVG as escaped text, and data inside of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

HERE = Path(__file__).parent


@cache
def templates() -> Environment:
    """The templates of this room. Whatever is put into one is escaped, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
        parts.append(f" {key}" if value is True else f' {key}="{escape(_short(value))}"')
    inner = content if isinstance(content, str) else Markup("").join(content)
    return Markup(f"<{name}{''.join(parts)}>{escape(inner)}</{name}>")


def _short(value: Any) -> Any:
    """A coordinate to a tenth of a pixel, so that a page is the same on all machines and no longer than it must be."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def json_block(identity: str, data: Any) -> Markup:
    """Data as JSON that no text in it can end, for a script that reads it by `JSON.parse` of the element's text.

    ValueError: a number is not finite, which JSON cannot say.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # halves of characters have no UTF-8
    return tag("script", Markup(text), type="application/json", id=identity)
