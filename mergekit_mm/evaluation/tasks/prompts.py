"""Prompts of the tasks by model family; `<image>` is the placeholder of the image.

The styles are `default` (the prompts that lmms-eval and VLMEvalKit share), `qwen2_vl` and `internvl` (VLMEvalKit's
prompts for these models, and the prompt of InternVL's own evaluator for boxes). A run chooses one by
`--metadata '{"prompt_style": "internvl"}'`.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_SHORT = "Answer the question using a single word or phrase."
_SHORT_QWEN = "Please try to answer the question with short words or phrases if possible."
_REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
STYLES = ("default", "qwen2_vl", "internvl")


def check_style(style: str) -> None:
    """ValueError: there is no such prompt style."""
    if style not in STYLES:
        raise ValueError(f"prompt_style is {style!r}; it must be one of {', '.join(STYLES)}")


def short_answer(question: str, style: str) -> str:
    """A question to be answered in a word or two."""
    check_style(style)
    return f"<image>{question}\n{_SHORT_QWEN if style == 'qwen2_vl' else _SHORT}"


def mathematics(question: str, options: Sequence[str], style: str) -> str:
    """A question with its options as (A), (B), ...; placeholders in the data (`<image1>`) become words or go."""
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
    """`text` with a backslash before every <image>, <video> and <audio>, which are then words and no placeholders."""
    return re.sub(r"\\?<((?:image|video|audio)\d*)>", r"\\<\1>", text)


def omni_question(question: str, media: Sequence[str]) -> str:
    """One line with a placeholder for each of `media` (video, image, audio), then the question, as in ModelCompose."""
    return "".join(f"{medium.capitalize()}: <{medium}>\n" for medium in media) + question
