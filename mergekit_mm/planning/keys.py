"""Keys of a merge config that mergekit drops without a word: a strength in the wrong place would not be applied."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import yaml
from mergekit.config import (
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)
from pydantic import BaseModel

_PARTS: dict[str, type[BaseModel]] = {  # what stands under a key, once or several times
    "models": InputModelDefinition,
    "slices": OutputSliceDefinition,
    "sources": InputSliceDefinition,
    "modules": OutputModuleDefinition,
}


def check_keys(source: str) -> None:
    """Refuse what looks like a misspelt key at the top of a config, and any unknown one of its parts.

    Other keys at the top pass: mergekit-multi's `name`, and what YAML's anchors are defined in.

    Raises:
        ValueError: naming the key, and what was probably meant.
    """
    config = yaml.safe_load(source)
    for key in config.keys() - MergeConfiguration.model_fields.keys():
        if close := difflib.get_close_matches(str(key), MergeConfiguration.model_fields, n=1):
            raise ValueError(f"Unknown key {key!r} in the merge config. Did you mean {close[0]!r}?")
    for where, part, known in _parts(config, ""):
        if unknown := sorted(map(str, part.keys() - known)):
            raise ValueError(
                f"Unknown key {unknown[0]!r} of {where} in the merge config: there can be {', '.join(known)}. "
                f"Write `parameters: {{{unknown[0]}: ...}}` if it is a parameter."
            )


def _parts(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Every part at any depth: how to name it, the part, and the keys that mergekit reads in it."""
    for key, kind in _PARTS.items():
        held = node.get(key) or ()
        for name, part in held.items() if isinstance(held, dict) else enumerate(held):
            here = f"{path}{key}.{name}"
            yield (f"input {part['model']}" if "model" in part else here), part, list(kind.model_fields)
            yield from _parts(part, f"{here}.")
