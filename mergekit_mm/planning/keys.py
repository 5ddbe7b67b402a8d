"""Keys of a merge config that mergekit drops without a word: a strength in the wrong place would not be applied."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import yaml
from mergekit.config import InputSliceDefinition, MergeConfiguration

_OF_AN_INPUT = set(InputSliceDefinition.model_fields)  # those of a model, and its layers


def check_keys(source: str) -> None:
    """Refuse what looks like a misspelt key at the top of a config, and any unknown one beside `model:`.

    Other keys at the top pass: mergekit-multi's `name`, and what YAML's anchors are defined in.

    Raises:
        ValueError: naming the key, and what was probably meant.
    """
    config = yaml.safe_load(source)
    for key in config.keys() - MergeConfiguration.model_fields.keys():
        if close := difflib.get_close_matches(str(key), MergeConfiguration.model_fields, n=1):
            raise ValueError(f"Unknown key {key!r} in the merge config. Did you mean {close[0]!r}?")
    for entry in _inputs([config.get(part) for part in ("models", "slices", "modules")]):
        if unknown := sorted(map(str, entry.keys() - _OF_AN_INPUT)):
            raise ValueError(
                f"Unknown key {unknown[0]!r} of input {entry['model']} in the merge config: an input has a model and "
                f"`parameters:`. Write `parameters: {{{unknown[0]}: ...}}` if it is a parameter."
            )


def _inputs(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping that names a model, at any depth."""
    if isinstance(node, dict) and "model" in node:
        yield node
    elif isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _inputs(child)
