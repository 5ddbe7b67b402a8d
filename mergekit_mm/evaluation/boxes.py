"""Boxes in replies: read them in the formats of Qwen-VL, InternVL and plain lists, and score them by IoU."""

import math
import re
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]

_N = r"\s*(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*"
# In this order; tokens such as <|box_start|>, <box> or a JSON key around them do not matter.
_FORMS = [
    re.compile(rf"\[{_N},{_N},{_N},{_N}\]"),
    re.compile(rf"\({_N},{_N},{_N},{_N}\)"),
    re.compile(rf"\({_N},{_N}\)\s*,?\s*\({_N},{_N}\)"),
]
BOX_UNITS = ("auto", "unit", "per_mille", "pixel")


def check_unit(box_unit: str) -> None:
    """Raise ValueError for a unit that does not exist."""
    if box_unit not in BOX_UNITS:
        raise ValueError(f"box_unit is {box_unit!r}; it must be one of {', '.join(BOX_UNITS)}")


def read_box(reply: str) -> Box | None:
    """The first four numbers in `reply` that form a box, as written; None without one."""
    for form in _FORMS:
        if match := form.search(reply):
            left, top, right, bottom = (float(each) for each in match.groups())
            return (left, top, right, bottom) if math.isfinite(left + top + right + bottom) else None
    return None


def to_pixels(box: Box, image_width: float, image_height: float, box_unit: str) -> Box:
    """`box` in pixels. `auto`: per mille if any number lies outside [0, 1], else parts of 1 (the paper's rule).

    `pixel` are pixels of the picture as the data set has it, not as a processor resized it. ValueError: unknown unit.
    """
    check_unit(box_unit)
    if box_unit == "auto":
        box_unit = "unit" if all(-1e-5 <= each <= 1 + 1e-5 for each in box) else "per_mille"
    if box_unit == "pixel":
        return box
    part = 1000.0 if box_unit == "per_mille" else 1.0
    left, top, right, bottom = (each / part for each in box)
    return (left * image_width, top * image_height, right * image_width, bottom * image_height)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes in corner form; 0 for a reversed box or an empty union. float64."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def box_iou(
    prediction: str,
    reference: Sequence[float],
    *,
    image_width: float,
    image_height: float,
    box_unit: str = "auto",
    **_: object,
) -> float:
    """IoU of the box in the reply with `reference` (pixels, corner form); 0 if there is no box in it."""
    box = read_box(prediction) if isinstance(prediction, str) else None
    return 0.0 if box is None else iou(to_pixels(box, image_width, image_height, box_unit), reference)


def box_iou_score(prediction: str, reference: Sequence[float], **fields: Any) -> float:
    """1 if the box in the reply overlaps `reference` with an IoU of at least 0.5, else 0; fields as for `box_iou`."""
    return float(box_iou(prediction, reference, **fields) >= 0.5)
