"""Images that are opened later, and stand-ins for images that cannot be read.

Both are PIL images, as every model of lm-eval takes them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from typing import Any

from PIL import Image, UnidentifiedImageError

_flaws: dict[bytes, str | None] = {}  # the flaw of each file by its digest, as many questions share an image


class LazyImage(Image.Image):
    """An image that is made when its pixels are first needed: all requests of a run exist before the first batch."""

    def __init__(self, make: Callable[[], Image.Image], look: Callable[[], Any] | None = None) -> None:
        """make: opens the image. look: raises the errors that `make` would, at a lower cost; by default `make`."""
        super().__init__()
        self.make = make
        self.look = look or make

    def load(self) -> Any:
        if self._im is None:
            made = self.make()
            made.load()
            self.im, self._size, self._mode = made.im, made.size, made.mode
        return super().load()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def size(self) -> tuple[int, int]:
        self.load()
        return self._size

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As PIL's `save`, but without keeping the pixels: lm-eval saves the images of all requests to hash them.

        A PNG is compressed at the fastest level, as the usual one takes longer than reading and answering may.
        """
        if format == "PNG":
            params.setdefault("compress_level", 1)
        self.make().save(fp, format, **params)


class UnreadableImage(LazyImage):
    """A stand-in for an image that cannot be read. An access to its pixels is a ValueError with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(self._refuse)
        self.reason = reason

    def _refuse(self) -> Image.Image:
        raise ValueError(self.reason)

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        fp.write(self.reason.encode())


def flaw_of(data: bytes) -> str | None:
    """The reason why an encoded image cannot be read, or None. Every byte is read; a JPEG is decoded at low size."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest not in _flaws:
        _flaws[digest] = _flaw_of(data)
    return _flaws[digest]


def _flaw_of(data: bytes) -> str | None:
    if not data:
        return "the file is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
            picture.draft("L", (1, 1))
            picture.load()
    except UnidentifiedImageError:
        return "it is no picture that Pillow knows"
    except Exception as error:  # Pillow's readers raise errors of any type
        return str(error) or type(error).__name__
    return None if min(picture.size) else "it has no pixels"
