"""Keys of a merge config that mergekit drops without a word, such as a weight that is written in the wrong place."""

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

_PARTS: dict[str, type[BaseModel]] = {  # key -> mergekit's class of the parts listed under it
    "models": InputModelDefinition,
    "slices": OutputSliceDefinition,
    "sources": InputSliceDefinition,
    "modules": OutputModuleDefinition,
}


def unknown_keys(source: str) -> Iterator[str]:
    """A sentence for each key that looks misspelt at the top of a config, and for each unknown key of its parts.

    Other keys at the top pass: `name` of mergekit-multi, and keys that only define anchors of YAML.
    """
    config = yaml.safe_load(source)
    for key in _unknown(config, MergeConfiguration):
        if hint := _closest_key(key, MergeConfiguration):
            yield f"Unknown key {key!r} in the merge config.{hint}"
    for where, part, kind in _parts(config, ""):
        for key in _unknown(part, kind):
            hint = _closest_key(key, kind) or f" Write `parameters: {{{key}: ...}}` if it is a parameter."
            yield f"Unknown key {key!r} of {where} in the merge config.{hint}"


def _unknown(part: dict[str, Any], kind: type[BaseModel]) -> list[str]:
    return sorted(map(str, part.keys() - kind.model_fields.keys()))


def _closest_key(key: str, kind: type[BaseModel]) -> str:
    """A sentence with the key that was probably meant; empty if none is close."""
    close = difflib.get_close_matches(key, kind.model_fields, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _parts(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], type[BaseModel]]]:
    """Every part at any depth: its name in messages, the part, and mergekit's class for it."""
    for key, kind in _PARTS.items():
        entries = node.get(key) or ()
        for name, part in entries.items() if isinstance(entries, dict) else enumerate(entries):
            here = f"{path}{key}.{name}"
            yield (f"input {part['model']}" if "model" in part else here), part, kind
            yield from _parts(part, f"{here}.")
