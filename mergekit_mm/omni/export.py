"""The modules of this room that a checkpoint carries, for environments with transformers and without this package."""

from __future__ import annotations

import shutil
from pathlib import Path

FILES = (
    "configuration.py",
    "internals.py",
    "donors.py",
    "routing.py",
    "modeling.py",
    "media.py",
    "audio.py",
    "video.py",
    "expansion.py",
    "templates.py",
    "processing.py",
)
AUTO_MODELS = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText")


def copy_code(directory: str | Path) -> dict[str, str]:
    """Copy the modules into a checkpoint's directory, and return the `auto_map` for its config.json.

    The entry "AutoProcessor" of that map also belongs into processor_config.json (`OmniProcessor.auto_map`).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(Path(__file__).with_name(name), directory / name)
    auto_map = {"AutoConfig": "configuration.OmniConfig", "AutoProcessor": "processing.OmniProcessor"}
    return auto_map | dict.fromkeys(AUTO_MODELS, "modeling.OmniForConditionalGeneration")
