"""Images of a request as processors take them: upright, RGB, on a white ground."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mergekit_mm.evaluation.tasks.lazy_images import LazyImage


def picture(given: Any) -> Image.Image:
    """An RGB copy of an image (PIL, or an array), with transparent parts white and 16 bits per channel as 8.

    The copy is turned upright where the file says how, as `datasets` and transformers do. An image whose pixels are not
    loaded stays unloaded, since the images of all requests together would fill the memory.
    """
    if not isinstance(given, Image.Image):
        return _on_white(Image.fromarray(np.asarray(given)))
    if isinstance(given, LazyImage):
        given = given.make()
    unread = getattr(given, "fp", None)
    source = Image.open(io.BytesIO(unread.getvalue())) if isinstance(unread, io.BytesIO) else given
    return _on_white(ImageOps.exif_transpose(source))


def _on_white(source: Image.Image) -> Image.Image:
    """The image in RGB as a viewer shows it, with a white page behind its transparent parts."""
    # PNG and GIF name one transparent colour, or the opacity of each colour of a palette.
    transparency = source.info.get("transparency")
    if source.mode.startswith("I"):  # 16 or 32 bits, which Pillow clips at 255, so that most such images would be white
        values = np.asarray(source)
        shades = np.asarray(values >> 8 if source.mode != "I" or values.max(initial=0) > 255 else values, np.uint8)
        opacity = np.full(values.shape, 255) if transparency is None else np.where(values == transparency, 0, 255)
        source = Image.merge("LA", [Image.fromarray(shades), Image.fromarray(opacity.astype(np.uint8))])
    elif isinstance(transparency, tuple) and max(transparency) > 255:
        # The transparent colour has 16 bits per channel, and Pillow keeps 8 bits of the image's own.
        source = source.copy()
        source.info["transparency"] = tuple(value >> 8 for value in transparency)
    if not source.has_transparency_data:
        return source.convert("RGB")
    layer = source.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
