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

_PARTS: dict[str, type[BaseModel]] = {  # key -> mergekit's class of what is listed under it
    "models": InputModelDefinition,
    "slices": OutputSliceDefinition,
    "sources": InputSliceDefinition,
    "modules": OutputModuleDefinition,
}


def unknown_keys(source: str) -> Iterator[str]:
    """A sentence for each key that looks misspelt at the top of a config, and for any unknown one of its parts.

    Other keys at the top pass: mergekit-multi's `name`, and what YAML's anchors are defined in.
    """
    config = yaml.safe_load(source)
    for key in _unknown(config, MergeConfiguration):
        if meant := _meant(key, MergeConfiguration):
            yield f"Unknown key {key!r} in the merge config.{meant}"
    for where, part, kind in _parts(config, ""):
        for key in _unknown(part, kind):
            meant = _meant(key, kind) or f" Write `parameters: {{{key}: ...}}` if it is a parameter."
            yield f"Unknown key {key!r} of {where} in the merge config.{meant}"


def _unknown(part: dict[str, Any], kind: type[BaseModel]) -> list[str]:
    return sorted(map(str, part.keys() - kind.model_fields.keys()))


def _meant(key: str, kind: type[BaseModel]) -> str:
    close = difflib.get_close_matches(key, kind.model_fields, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _parts(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], type[BaseModel]]]:
    """Every part at any depth: how to name it, the part, and what mergekit reads in it."""
    for key, kind in _PARTS.items():
        held = node.get(key) or ()
        for name, part in held.items() if isinstance(held, dict) else enumerate(held):
            here = f"{path}{key}.{name}"
            yield (f"input {part['model']}" if "model" in part else here), part, kind
            yield from _parts(part, f"{here}.")
