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
from pydantic import ValidationError

_KINDS = (
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)
_KNOWN = sorted({key for kind in _KINDS for key in kind.model_fields})


def unknown_keys(source: str) -> Iterator[str]:
    """A sentence for each key that looks misspelt at the top of a config, and for any unknown one of its parts.

    Other keys at the top pass: mergekit-multi's `name`, and what YAML's anchors are defined in.
    """
    config = yaml.safe_load(source)
    try:
        MergeConfiguration.model_validate(config, extra="forbid")
    except ValidationError as error:
        for found in error.errors():
            if found["type"] != "extra_forbidden":
                continue
            *path, key = found["loc"]
            close = difflib.get_close_matches(str(key), _KNOWN if path else MergeConfiguration.model_fields, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            if path:
                parameter = (
                    f" Write `parameters: {{{key}: ...}}` if it is a parameter." if path[0] != "tokenizer" else ""
                )
                yield f"Unknown key {key!r} of {_named(config, path)} in the merge config.{meant or parameter}"
            elif meant:
                yield f"Unknown key {key!r} in the merge config.{meant}"


def _named(config: Any, path: list[int | str]) -> str:
    """How to name a part of a config: the input that it is, or the keys that lead to it."""
    part, keys = config, list[str]()
    for key in path:
        if isinstance(part, dict) and key not in part:
            continue  # pydantic's name for one of several types that a value can have
        part = part[key]
        keys.append(str(key))
    return f"input {part['model']}" if "model" in part else ".".join(keys)
