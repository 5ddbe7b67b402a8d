"""Fonts by family, from matplotlib and from packages with one family each; a split has families of its own.

DejaVu, STIX and Computer Modern come with matplotlib. The others come with packages: Caladea under Apache 2.0, the rest
under SIL OFL 1.1.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import matplotlib
from PIL import ImageFont

from examples.minibench.splits import share

_BESIDE_MATPLOTLIB = {
    "DejaVu Sans": "DejaVuSans.ttf",
    "DejaVu Sans Mono": "DejaVuSansMono-Bold.ttf",
    "DejaVu Serif": "DejaVuSerif.ttf",
    "STIX": "STIXGeneralBol.ttf",
    "Computer Modern Sans": "cmss10.ttf",
    "Computer Modern Typewriter": "cmtt10.ttf",
}
_PACKAGES = {
    "Caladea": ("font_caladea", "Caladea-Bold.ttf"),
    "Fredoka One": ("font_fredoka_one", "FredokaOne-Regular.ttf"),
    "Hanken Grotesk": ("font_hanken_grotesk", "HankenGrotesk-SemiBold.otf"),
    "Intuitive": ("font_intuitive", "Intuitive.ttf"),
    "Lato": ("font_lato", "Lato-Bold.ttf"),
    "Source Sans": ("font_source_sans_pro", "SourceSansPro-Semibold.ttf"),
    "Source Serif": ("font_source_serif_pro", "SourceSerifPro-Bold.ttf"),
}


def families(split: str) -> list[str]:
    """The families of a split."""
    return share([*_BESIDE_MATPLOTLIB, *_PACKAGES], split)


@cache
def font(family: str, size: int) -> ImageFont.FreeTypeFont:
    """A family at a size in pixels."""
    if family in _BESIDE_MATPLOTLIB:
        file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _BESIDE_MATPLOTLIB[family]
    else:
        package, name = _PACKAGES[family]
        file = Path(str(files(package) / "files" / name))
    return ImageFont.truetype(str(file), size)
