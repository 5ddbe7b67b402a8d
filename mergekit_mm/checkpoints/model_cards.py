"""What the cards of models say of them: their licences, and the task that they are listed under on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from mergekit_mm.checkpoints.disk import read_json
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.errors import MergeError

CARD = "README.md"


@dataclass(frozen=True)
class Licence:
    """A licence as a model card names it."""

    identifier: str  # one of the hub's, such as `apache-2.0`; `other` for one with a name of its own
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.name or (self.link if self.identifier == "other" and self.link else self.identifier)


@dataclass(frozen=True)
class Parent:
    """A model or adapter that a merge was made from."""

    name: str  # as the config has it
    is_on_hub: bool
    licence: Licence | None  # None if neither its card nor its config names one
    task: str | None = None  # the `pipeline_tag` of its card

    @classmethod
    def of(cls, name: str, is_on_hub: bool, directory: Path | None) -> Parent:
        """A parent by the files in its directory; None if these are not on this machine."""
        if directory is None:
            return cls(name, is_on_hub, None)
        metadata = card_metadata(directory)
        licence = _licence(metadata) or _licence(_config(directory))
        return cls(name, is_on_hub, licence, _text(metadata.get("pipeline_tag")))


def card_metadata(directory: Path) -> Mapping[str, Any]:
    """The metadata of a model's card; empty if it has none, or none that can be read."""
    file = directory / CARD
    try:
        return (huggingface_hub.metadata_load(file) if file.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError):  # a card of any kind must not stop a merge
        return {}


def _config(directory: Path) -> Mapping[str, Any]:
    try:
        return read_json(directory / "config.json")
    except (OSError, MergeError):
        return {}


def _licence(metadata: Mapping[str, Any]) -> Licence | None:
    """The licence in a card's metadata, or in a config. `unknown`, and `other` without a name or a link, is none."""
    value = metadata.get("license")
    if isinstance(value, list):  # a card may name several
        value = " and ".join(sorted(map(str, value))) or None
    identifier = _text(value)
    name, link = _text(metadata.get("license_name")), _text(metadata.get("license_link"))
    if identifier is None or identifier == "unknown" or (identifier == "other" and not (name or link)):
        return None
    return Licence(identifier, name, link)


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def shared_licence(parents: Sequence[Parent]) -> Licence | None:
    """The licence of all parents; None if one is not known, or they differ."""
    licences = {parent.licence for parent in parents}
    return licences.pop() if len(licences) == 1 else None


def licences_told(parents: Sequence[Parent]) -> str:
    """One sentence on the licences of a merge's parents."""
    owners: dict[str, list[str]] = {}
    for parent in parents:
        owners.setdefault(str(parent.licence or ""), []).append(parent.name)
    listed = "; ".join(f"{licence} ({some(names)})" for licence, names in sorted(owners.items()) if licence)
    unknown = f"No licence is known of {some(owners[''])}" if "" in owners else ""
    if unknown:
        return f"{unknown}; of the others: {listed}." if listed else f"{unknown}."
    if len(owners) == 1:
        return f"The licence of all inputs is {next(iter(owners))}."
    return f"The licences of the inputs differ: {listed}."
