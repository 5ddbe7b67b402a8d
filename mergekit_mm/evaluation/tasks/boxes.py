"""Boxes in replies: their corners in pixels, and their intersection over union with the box of the data."""

from collections.abc import Sequence
from typing import Any

from mergekit_mm.evaluation.tasks.box_forms import Box, WrittenBox, read_box
from mergekit_mm.evaluation.tasks.replies import answer_part

BOX_UNITS = ("auto", "unit", "per_mille", "pixel", "resized")
_PARTS = {"unit": 1.0, "percent": 100.0, "per_mille": 1000.0}
_TOLERANCE = 0.05  # parts of the image by which a box at its edge may be written outside of it
# The `model_type`s of families that write pixels of the image as their processor resized it, and of those that write y
# first.
_RESIZED = {"qwen2_5_vl", "qwen2_5_omni", "qwen2_5_omni_thinker"}
_Y_FIRST = {"gemma4", "gemma4_unified"}


def check_unit(box_unit: str) -> None:
    """Raise ValueError for a unit that does not exist."""
    if box_unit not in BOX_UNITS:
        raise ValueError(f"box_unit is {box_unit!r}; it must be one of {', '.join(BOX_UNITS)}")


def to_pixels(
    written: WrittenBox,
    image_width: float,
    image_height: float,
    box_unit: str,
    shown: Sequence[float] | None = None,
    family: str | None = None,
) -> Box:
    """The corners (left, top, right, bottom) of a box, in pixels of an image of `image_width` x `image_height`.

    shown: width and height of the image as the model saw it, after its processor resized it. family: the model's
    `model_type`. Both are None if the model does not report them. box_unit says what the numbers of the box are:

    - `unit`, `per_mille`: parts of the image's width and height;
    - `pixel`: pixels of the data set's image, upright;
    - `resized`: pixels of the image as the model saw it, or of the data set's image if `shown` is None;
    - `auto`: what the form says (`box_forms`); else parts of 1 if all numbers lie within [0, 1] or 0.05 outside of it;
      else `resized` for the families that write so; else per mille, which is the paper's rule.

    ValueError: there is no such unit.
    """
    check_unit(box_unit)
    first, second, third, fourth = written.numbers
    is_x_first = written.is_x_first if written.is_x_first is not None else family not in _Y_FIRST
    left, top, right, bottom = (first, second, third, fourth) if is_x_first else (second, first, fourth, third)
    if box_unit == "auto":
        is_unit = all(-_TOLERANCE <= each <= 1 + _TOLERANCE for each in written.numbers)
        by_numbers = "unit" if is_unit else "resized" if family in _RESIZED and shown else "per_mille"
        box_unit = written.unit or by_numbers
        box_unit = "resized" if box_unit == "pixel" and family in _RESIZED else box_unit
    wide, high = _PARTS.get(box_unit, image_width), _PARTS.get(box_unit, image_height)
    if box_unit == "resized" and shown:
        wide, high = shown
    across, down = image_width / wide, image_height / high
    return (left * across, top * down, right * across, bottom * down)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes given by their corners; 0 for a reversed box or an empty union."""
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
    shown: Sequence[float] | None = None,
    family: str | None = None,
    **_: object,
) -> float:
    """Intersection over union of the first box in the reply with `reference`, the corners of a box in pixels.

    It is 0 if the reply has no box. The other fields are those of `to_pixels`.
    """
    box = read_box(answer_part(prediction)) if isinstance(prediction, str) else None
    if box is None:
        return 0.0
    return iou(to_pixels(box, image_width, image_height, box_unit, shown, family), reference)


def box_iou_score(prediction: str, reference: Sequence[float], **fields: Any) -> float:
    """1 if `box_iou` is at least 0.5, else 0; arguments as for `box_iou`."""
    return float(box_iou(prediction, reference, **fields) >= 0.5)


__all__ = ["BOX_UNITS", "box_iou", "box_iou_score", "check_unit", "iou", "read_box", "to_pixels"]
