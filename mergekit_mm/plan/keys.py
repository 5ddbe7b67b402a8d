"""Keys of a merge config that mergekit drops without a word, such as a weight that is written in the wrong place."""

from __future__ import annotations

import difflib
from collections import Counter
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
    """A sentence for each key that looks misspelt at the top of a config, and for each unknown key of its parts.

    Other keys at the top pass: `name` of mergekit-multi, and keys that only define anchors of YAML.
    """
    config = yaml.safe_load(source)
    try:
        MergeConfiguration.model_validate(config, extra="forbid")
    except ValidationError as error:
        yield from (
            _sentence(config, path, key) for path, key in _unknown(config, error) if path or _closest_key(path, key)
        )


def _unknown(config: Any, error: ValidationError) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """The path of a part and its unknown key, once each; where a value can have several types, one unknown to all."""
    found = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
    times = Counter((_existing(config, path), str(key)) for *path, key in found)
    for (path, key), count in times.items():
        if count == max(others for (where, _), others in times.items() if where == path):
            yield path, key


def _sentence(config: Any, path: tuple[int | str, ...], key: str) -> str:
    part = config
    for step in path:
        part = part[step]
    where = f" of input {part['model']}" if "model" in part else f" of {'.'.join(map(str, path))}" if path else ""
    advice = f" Write `parameters: {{{key}: ...}}` if it is a parameter." if path[:1] != ("tokenizer",) else ""
    return f"Unknown key {key!r}{where} in the merge config.{_closest_key(path, key) or advice}"


def _closest_key(path: tuple[int | str, ...], key: str) -> str:
    close = difflib.get_close_matches(key, _KNOWN if path else MergeConfiguration.model_fields, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _existing(config: Any, path: list[int | str]) -> tuple[int | str, ...]:
    """A path of pydantic's without its names for the types that a value can have."""
    part, steps = config, list[int | str]()
    for step in path:
        if step in part if isinstance(part, dict) else isinstance(part, list) and isinstance(step, int):
            part = part[step]
            steps.append(step)
    return tuple(steps)
