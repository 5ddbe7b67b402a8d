"""The colour and the shape in an easy-VQA image, from its pixels.

The package has no labels of its images, only questions, which do not tell both facts of every image. The shapes are
upright: a rectangle fills its bounding box, a triangle has more pixels in the lower half of it than in the upper half,
and a circle as many. On all images whose questions tell both facts, the pixels tell the same ones.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
_TRIANGLE = 0.6  # pixels in the upper half per pixel in the lower: triangles have at most 0.42, circles at least 0.76


def facts_in(image: Image.Image) -> dict[str, str]:
    """The facts of an image with one shape."""
    pixels = np.asarray(image)
    filled = {color: (pixels == value).all(-1) for color, value in RGB.items()}
    color = max(filled, key=lambda name: int(filled[name].sum()))
    rows, columns = np.nonzero(filled[color])
    box = filled[color][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    if box.all():
        return {"color": color, "shape": "rectangle"}
    half = len(box) // 2
    upper, lower = box[:half].sum(), box[-half:].sum()
    return {"color": color, "shape": "triangle" if upper < _TRIANGLE * lower else "circle"}
