"""Pictures of a request as processors take them: upright, RGB, on white."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mergekit_mm.evaluation.tasks.lazy_images import LazyImage


def picture(given: Any) -> Image.Image:
    """An RGB copy of a picture (PIL, or an array), transparent parts white. A picture that is not loaded stays so, or
    all of them would fill the memory.

    Turned upright where the file says how, as `datasets` and transformers do; 16 bits become 8.
    """
    if not isinstance(given, Image.Image):
        return _on_white(Image.fromarray(np.asarray(given)))
    if isinstance(given, LazyImage):
        given = given.make()
    unread = getattr(given, "fp", None)
    source = Image.open(io.BytesIO(unread.getvalue())) if isinstance(unread, io.BytesIO) else given
    return _on_white(ImageOps.exif_transpose(source))


def _on_white(source: Image.Image) -> Image.Image:
    """RGB, as a viewer shows the picture: what is transparent lets a white page through."""
    clear = source.info.get(
        "transparency"
    )  # in PNG and GIF: one transparent colour, or the opacity of each colour of a palette
    if source.mode.startswith("I"):  # Pillow would cut 16 bits off at 255: a white picture
        values = np.asarray(source)
        shades = np.asarray(values >> 8 if source.mode != "I" or values.max(initial=0) > 255 else values, np.uint8)
        opaque = np.full(values.shape, 255, np.uint8) if clear is None else np.where(values == clear, 0, 255)
        source = Image.merge("LA", [Image.fromarray(shades), Image.fromarray(opaque.astype(np.uint8))])
    elif isinstance(clear, tuple) and max(clear) > 255:  # the colour has 16 bits a channel, Pillow keeps 8 of them
        source = source.copy()
        source.info["transparency"] = tuple(value >> 8 for value in clear)
    if not source.has_transparency_data:
        return source.convert("RGB")
    layer = source.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
