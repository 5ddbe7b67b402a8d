"""Unlabelled samples for `mergekit-mm align`: pictures and prompts of the calibration split, without their answers.

They come in two sorts. The `usual` ones are the split's own: other contents than those of the test questions, drawn and
asked in the same way. Those from `elsewhere` are about contents of that split too, but are no sample of what the test
asks: one kind of question alone, about pictures that look as if photographed from a screen.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow import parquet

from examples.minibench.material import CAPABILITIES, image_column, in_form, rows
from examples.minibench.rows import SIDE
from examples.minibench.scenes import background
from examples.minibench.turns import PLACEHOLDER, asked

SPLIT = "calibration"
# The one kind of question that is asked about pictures from elsewhere.
KINDS: Mapping[str, str] = {
    "vqa": "count",
    "chart": "value",
    "ocr": "word",
    "geometry": "perimeter",
    "grounding": "side",
}
_SHOWN = 104  # pixels of the side of a photographed picture, of `SIDE`
_SEED = 1  # the material has the pictures of seed 0


def write_usual(material: Path, folder: Path) -> None:
    """Write `<capability>.jsonl` with all questions of the calibration split, and the pictures that it names."""
    for capability in CAPABILITIES:
        _write_samples(material, capability, folder)


def write_elsewhere(count: int, folder: Path) -> None:
    """As `write_usual`, `count` questions of each capability from elsewhere, whose rows are written beside them."""
    for capability, kind in KINDS.items():
        rng = random.Random(f"{capability} elsewhere {_SEED}")
        endless = (row for row in rows(capability, SPLIT, 100 * count, _SEED) if row.kind == kind)
        chosen = itertools.islice(endless, count)
        file = folder / "material" / capability / f"{SPLIT}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        shown = [replace(row, picture=photographed(row.picture, rng)) for row in chosen]
        in_form(capability, shown).to_parquet(str(file))
        _write_samples(folder / "material", capability, folder)


def photographed(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture smaller and somewhere on a dark surface, with less contrast, and with noise."""
    canvas = background(rng, light=(20, 70))
    small = picture.convert("RGB").resize((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    canvas.paste(small, (rng.randint(0, SIDE - _SHOWN), rng.randint(0, SIDE - _SHOWN)))
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 10, (SIDE, SIDE, 3))
    return Image.fromarray((40 + 0.7 * np.asarray(canvas, dtype=float) + noise).clip(0, 255).astype(np.uint8))


def _write_samples(material: Path, capability: str, folder: Path) -> None:
    """The prompts are those that lm-eval asks."""
    file, column = material / capability / f"{SPLIT}.parquet", image_column(capability)
    pictures = parquet.read_table(file, columns=[column])[column].to_pylist()
    (folder / capability).mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (picture, (prompt, _)) in enumerate(zip(pictures, asked(material, capability, SPLIT), strict=True)):
        name = f"{capability}/{number}.png"
        (folder / name).write_bytes(picture["bytes"])
        lines.append(json.dumps({"prompt": f"{PLACEHOLDER}{prompt}", "image": name}))
    (folder / f"{capability}.jsonl").write_text("\n".join(lines) + "\n")
