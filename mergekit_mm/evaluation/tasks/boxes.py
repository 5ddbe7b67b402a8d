"""Boxes in replies: what they are in pixels, and their IoU with the box of the data."""

from collections.abc import Sequence
from typing import Any

from mergekit_mm.evaluation.tasks.box_forms import Box, WrittenBox, read_box
from mergekit_mm.evaluation.tasks.replies import answer_part

BOX_UNITS = ("auto", "unit", "per_mille", "pixel", "resized")
_PARTS = {"unit": 1.0, "percent": 100.0, "per_mille": 1000.0}
# A box that touches the edge of the picture may be written a hair outside of it.
_HAIR = 0.05
# Families by `model_type` that write pixels of the picture as their processor resized it, and that write y first.
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
    """A box as written, in pixels of a picture of `image_width` x `image_height`, corners (left, top, right, bottom).

    `shown` is (width, height) of that picture as the model saw it, after its processor resized it, and `family` the
    model's `model_type`; both are None where a model does not tell. `box_unit`:

    `unit`, `per_mille`: parts of the picture. `pixel`: pixels of the picture as the data set has it,
    upright. `resized`: pixels of the picture as the model saw it; as the data set has it, where that is not known.
    `auto`: what the form tells (`box_forms`); else parts of 1 if no number lies outside [0, 1] by more than a hair;
    else `resized` for families that write so; else per mille (the paper's rule).

    ValueError: unknown unit.
    """
    check_unit(box_unit)
    first, second, third, fourth = written.numbers
    is_x_first = written.is_x_first if written.is_x_first is not None else family not in _Y_FIRST
    left, top, right, bottom = (first, second, third, fourth) if is_x_first else (second, first, fourth, third)
    if box_unit == "auto":
        is_unit = all(-_HAIR <= each <= 1 + _HAIR for each in written.numbers)
        by_numbers = "unit" if is_unit else "resized" if family in _RESIZED and shown else "per_mille"
        box_unit = written.unit or by_numbers
        box_unit = "resized" if box_unit == "pixel" and family in _RESIZED else box_unit
    wide, high = _PARTS.get(box_unit, image_width), _PARTS.get(box_unit, image_height)
    if box_unit == "resized" and shown:
        wide, high = shown
    across, down = image_width / wide, image_height / high
    return (left * across, top * down, right * across, bottom * down)


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
    shown: Sequence[float] | None = None,
    family: str | None = None,
    **_: object,
) -> float:
    """IoU of the box in the reply with `reference` (pixels, corner form); 0 if there is no box in it.

    The other fields are those of `to_pixels`.
    """
    box = read_box(answer_part(prediction)) if isinstance(prediction, str) else None
    if box is None:
        return 0.0
    return iou(to_pixels(box, image_width, image_height, box_unit, shown, family), reference)


def box_iou_score(prediction: str, reference: Sequence[float], **fields: Any) -> float:
    """1 if the box in the reply overlaps `reference` with an IoU of at least 0.5, else 0; fields as for `box_iou`."""
    return float(box_iou(prediction, reference, **fields) >= 0.5)


__all__ = ["BOX_UNITS", "box_iou", "box_iou_score", "check_unit", "iou", "read_box", "to_pixels"]
