"""Prompts of the image tasks by model family; `<image>` marks the picture.

Styles: `default` (what lmms-eval and VLMEvalKit share), `qwen2_vl` and `internvl` (VLMEvalKit's own for these models,
InternVL's evaluator for boxes). Chosen by `--metadata '{"prompt_style": "internvl"}'`.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_SHORT = "Answer the question using a single word or phrase."
_SHORT_QWEN = "Please try to answer the question with short words or phrases if possible."
_REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
STYLES = ("default", "qwen2_vl", "internvl")


def check_style(style: str) -> None:
    """Raise ValueError for a prompt style that does not exist."""
    if style not in STYLES:
        raise ValueError(f"prompt_style is {style!r}; it must be one of {', '.join(STYLES)}")


def short_answer(question: str, style: str) -> str:
    """A question to be answered in a word or two."""
    check_style(style)
    return f"<image>{question}\n{_SHORT_QWEN if style == 'qwen2_vl' else _SHORT}"


def mathematics(question: str, options: Sequence[str], style: str) -> str:
    """A question, its options as (A), (B), ...; picture marks of the data (`<image1>`) are taken out."""
    check_style(style)
    lines = [re.sub(r"<image\d+>", "", question).strip()]
    if options:
        lines += ["Choices:", *(f"({letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False))]
    if style == "qwen2_vl":
        lines.append(_SHORT_QWEN)
    return "<image>" + re.sub(r"<image(\d+)>", r"picture \1", "\n".join(lines))


def region(phrase: str, style: str) -> str:
    """A referring expression to be answered with a box."""
    check_style(style)
    return f"<image>{_REGION}{f'<ref>{phrase}</ref>' if style == 'internvl' else phrase}"


def as_words(text: str) -> str:
    """`text` with a backslash before what would be the mark of a medium: <video> in it is a word."""
    return re.sub(r"\\?<((?:image|video|audio)\d*)>", r"\\<\1>", text)


def sounds_and_pictures(question: str, media: Sequence[str]) -> str:
    """An omni question: one line for each of `media` (video, image, audio), then the question (ModelCompose)."""
    return "".join(f"{medium.capitalize()}: <{medium}>\n" for medium in media) + question
