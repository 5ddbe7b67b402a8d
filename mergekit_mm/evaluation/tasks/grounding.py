"""Images and boxes of the grounding tasks, both upright.

A photo may be stored on its side, with an EXIF tag that says how to turn it. The boxes of RefCOCO belong to the image
as it is stored. Every model is shown the image upright, so the box is turned in the same way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageOps

from mergekit_mm.evaluation.tasks.media import images, open_image

_ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, 2 to 8 are the other turns and mirrorings


def pictures(doc: Mapping[str, Any]) -> list[Image.Image]:
    """`doc_to_image`: the image, upright; its pixels are read only if it must be turned."""
    return [each if _orientation(each) == 1 else ImageOps.exif_transpose(each) for each in images(doc)]


def upright_truth(doc: Mapping[str, Any]) -> tuple[Sequence[float], int, int]:
    """The document's box (left, top, right, bottom) in pixels of the upright image, and its width and height."""
    picture = open_image(doc["image"])  # reads the header of the file only
    (width, height), orientation = picture.size, _orientation(picture)
    box = turned(doc["box"], width, height, orientation)
    return (box, height, width) if orientation > 4 else (box, width, height)


def _orientation(picture: Image.Image) -> int:
    found = picture.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def turned(box: Sequence[float], width: float, height: float, orientation: int) -> Sequence[float]:
    """A box in a stored image of `width` x `height`, as a box in that image turned upright from an EXIF orientation."""
    left, top, right, bottom = box
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation > 4 else (left, top, right, bottom)
