"""Pictures that are opened later, and pictures that cannot be read: PIL objects, as all models of lm-eval want them."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from typing import Any

from PIL import Image, UnidentifiedImageError

_flaws: dict[bytes, str | None] = {}  # digest of a file -> what is wrong with it; many questions share a picture


class Later(Image.Image):
    """A picture that is made when its pixels are first needed: all requests of a run exist before the first batch."""

    def __init__(self, make: Callable[[], Image.Image], look: Callable[[], Any] | None = None) -> None:
        """make: opens the picture; look: raises what `make` would, where that can be known for less."""
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
        """As PIL's, but the pixels are not kept: lm-eval hashes the pictures of all requests so."""
        self.make().save(fp, format, **params)


class Unreadable(Later):
    """Stands for a picture that cannot be read. Whoever needs its pixels gets a ValueError with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(self._refuse)
        self.reason = reason

    def _refuse(self) -> Image.Image:
        raise ValueError(self.reason)

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        fp.write(self.reason.encode())


def flaw_of(data: bytes) -> str | None:
    """Why the picture in a file cannot be read, or None. Every byte is read, but a JPEG is decoded small."""
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
    except Exception as error:  # the readers of the many formats raise errors of any type
        return str(error) or type(error).__name__
    return None if min(picture.size) else "it has no pixels"
