"""The forms in which models write a box, and what each form says about the unit and the order of its numbers.

| form | family | unit and order |
|---|---|---|
| `<loc0205><loc0102><loc0819><loc0512>` | PaliGemma | 1024ths of the image, y first |
| `<loc_100><loc_200><loc_500><loc_800>` | Florence-2 | the middles of 1000 bins |
| `<patch_index_0044><patch_index_0863>` | Kosmos-2 | cells of a grid of 32 x 32 |
| `{<10><20><50><80>}` | MiniGPT-v2 | percent |
| `"box_2d": [200, 100, 800, 500]` | Gemini, Gemma | per mille, y first |
| `{"x1": 100, "y1": 200, ...}`, xmin, left, x y width height | any | not said |
| `[100, 200, 500, 800]`, `"bbox_2d": [...]`, nested, in parentheses, as two points, bare | any | not said |
| `[64px, 96px, 320px, 384px]`, `(64, 96, 320, 384) pixels` | any | pixels |
"""

import math
import re
from typing import NamedTuple

Box = tuple[float, float, float, float]


class WrittenBox(NamedTuple):
    """The four numbers of a box as they stand in a reply.

    unit: `unit`, `percent`, `per_mille` or `pixel`; None if the form does not say. is_x_first: True for the order left,
    top, right, bottom, False for top, left, bottom, right; None if the form does not say.
    """

    numbers: Box
    unit: str | None = None
    is_x_first: bool | None = None


_CELLS = 32  # cells on each side of Kosmos-2's grid
_PATCHES = re.compile(r"<patch_index_(\d{1,4})>\s*<patch_index_(\d{1,4})>")
# Location tokens: pattern, position within a bin, number of bins, whether x comes first.
_TOKENS = (
    (re.compile(r"\s*".join([r"<loc(\d{4})>"] * 4)), 0, 1024, False),
    (re.compile(r"\s*".join([r"<(?:loc|bin)_(\d{1,4})>"] * 4)), 0.5, 1000, True),
    (re.compile(r"\{\s*" + r"\s*".join([r"<(\d{1,3})>"] * 4) + r"\s*\}"), 0, 100, True),
)
# A number, an item of a list (with its unit or in quotes), two and four of them.
_N = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE]-?\d{1,2})?"
_ITEM = rf"[\"']?({_N})\s?(?:%|px|pixels?)?[\"']?"
_NEXT = r"(?:\s*[,;]\s*|\s+)"
_PAIR = _ITEM + _NEXT + _ITEM
_FOUR = _PAIR + _NEXT + _PAIR
# The text between two points in parentheses: within one sentence, or across sentences.
_WITHIN = r"(?:[\s,;]*|[^\d()\[\].\n]{0,40})"
_BETWEEN = r"(?:[\s,;]*|[^\d()\[\]]{0,40})"
_PIXEL_UNIT = re.compile(r"\d\s?(?:px|pixel)", re.IGNORECASE)
_PIXELS = re.compile(r"\s*(?:in\s+|\()?(?:px|pixels?)\b", re.IGNORECASE)
# Patterns of four numbers, tried in this order: brackets and parentheses first, as other evaluators do.
_LISTS = (
    re.compile(rf"\[\s*{_FOUR}\s*,?\s*\]"),
    re.compile(rf"\(\s*{_FOUR}\s*\)"),
    re.compile(rf"\(\s*{_PAIR}\s*\){_WITHIN}\(\s*{_PAIR}\s*\)"),
    re.compile(rf"\(\s*{_PAIR}\s*\){_BETWEEN}\(\s*{_PAIR}\s*\)"),
    re.compile(rf"\[\s*{_PAIR}\s*\]{_BETWEEN}\[\s*{_PAIR}\s*\]"),
    re.compile(rf"[{{<]\s*{_FOUR}\s*[}}>]"),
    re.compile(rf"(?<![\w.,-])(?<!, ){_FOUR}(?![\w.]|\s*,\s*{_N})"),
)
_BOX_2D = re.compile(rf"\bbox_2d[\"']?\s*[:=]\s*\[+\s*{_FOUR}\s*\]", re.IGNORECASE)
_Y_FIRST = re.compile(r"\by_?(?:min|1)\W{1,4}x_?(?:min|1)\W{1,4}y_?(?:max|2)\W{1,4}x_?(?:max|2)\b", re.IGNORECASE)
_KEYED = re.compile(rf"\b([A-Za-z]+(?:_?[A-Za-z\d]+)?)[\"']?\s*[:=]\s*[\"']?({_N})\s?%?")
_CORNER_KEYS = ("x1 y1 x2 y2", "x0 y0 x1 y1", "xmin ymin xmax ymax", "left top right bottom")
_SIZE_KEYS = ("x y width height", "x y w h", "left top width height", "xmin ymin width height")
_PLAIN_SIGNS = str.maketrans("\u2212\uff0c\uff08\uff09\uff3b\uff3d\uff1b", "-,()[];")


def read_box(reply: str) -> WrittenBox | None:
    """The first box in `reply`: of tokens, else of keys, else of a list; None without a box."""
    text = reply.translate(_PLAIN_SIGNS)
    found = _from_tokens(text) or _from_keys(text) or _from_lists(text)
    return found if found and math.isfinite(sum(found.numbers)) else None


def _from_tokens(text: str) -> WrittenBox | None:
    for form, shift, steps, is_x_first in _TOKENS:
        if match := form.search(text):
            a, b, c, d = ((int(each) + shift) / steps for each in match.groups())
            return WrittenBox((a, b, c, d), "unit", is_x_first)
    if match := _PATCHES.search(text):
        first, last = int(match[1]), int(match[2])
        (top, left), (bottom, right) = divmod(first, _CELLS), divmod(last, _CELLS)
        # A box goes from the middle of one cell to the middle of the other, or from edge to edge if both cells lie in
        # one row or column.
        start, end = (0.0, 1.0) if top == bottom or left == right else (0.5, 0.5)
        corners = (left + start, top + start, right + end, bottom + end)
        a, b, c, d = (each / _CELLS for each in corners)
        return WrittenBox((a, b, c, d), "unit", True)
    return None


def _from_keys(text: str) -> WrittenBox | None:
    if match := _BOX_2D.search(text):
        a, b, c, d = (float(each) for each in match.groups())
        return WrittenBox((a, b, c, d), None if max(a, b, c, d) <= 1 else "per_mille", False)
    given: dict[str, float] = {}
    percent = False
    for match in _KEYED.finditer(text):
        given.setdefault(match[1].lower().replace("_", ""), float(match[2]))
        percent = percent or match[0].endswith("%")
    unit = "percent" if percent else None
    for names in _CORNER_KEYS:
        if given.keys() >= set(names.split()):
            a, b, c, d = (given[name] for name in names.split())
            return WrittenBox((a, b, c, d), unit, True)
    for names in _SIZE_KEYS:
        if given.keys() >= set(names.split()):
            left, top, width, height = (given[name] for name in names.split())
            return WrittenBox((left, top, left + width, top + height), unit, True)
    return None


def _from_lists(text: str) -> WrittenBox | None:
    for form in _LISTS:
        if match := form.search(text):
            a, b, c, d = (float(each) for each in match.groups())
            is_pixels = _PIXEL_UNIT.search(match[0]) or _PIXELS.match(text, match.end())
            unit = "percent" if "%" in match[0] else "pixel" if is_pixels else None
            return WrittenBox((a, b, c, d), unit, False if _Y_FIRST.search(text) else None)
    return None
