"""Unlabelled samples: a prompt with its media, and the expert whose answer to it the merged model shall learn."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.tasks import media

_ONE, _SEVERAL = ("image", "video", "audio"), ("images",)
_KEYS = ("expert", "prompt", *_ONE, *_SEVERAL)
_HELD_BACK = 4  # one of so many samples is held back


@dataclass(frozen=True)
class Sample:
    """One question to one expert.

    expert: the expert's name as the samples have it. prompt: with marks such as <image>. digest: the SHA-256 of the
    prompt and of the content of its media, in hexadecimal. where: the place that it was read from, for messages.
    """

    expert: str
    prompt: str
    digest: str
    where: str
    document: Mapping[str, Any] = field(repr=False, compare=False)

    def media(self) -> dict[str, list[Any]]:
        """The media as the model `mllm` takes them, opened anew and not decoded."""
        images = [media.image_or_stand_in(each) for each in self.document.get("images") or ()]
        return {"visual": media.visuals(self.document) + images, "audio": media.sounds(self.document)}


@dataclass(frozen=True)
class Split:
    """The samples of one expert: those that are trained on, and those by which the result is judged."""

    trained: tuple[Sample, ...]
    held_back: tuple[Sample, ...]


def read_samples(path: Path, expert: str | None = None) -> list[Sample]:
    """The samples of a JSONL file.

    Each line is an object with `prompt`, `expert` (left out if all lines belong to the argument `expert`), and the
    paths of its media, below the file's directory if they are relative: `image`, `video`, `audio`, or a list `images`.

    Raises:
        MergeError: the file or one of the media cannot be read, or a line is no sample.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = [
        _sample(line, f"{path}, line {at}", path.parent, expert) for at, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise MergeError(f"{path} has no samples.")
    return found


def _sample(line: str, where: str, directory: Path, expert: str | None) -> Sample:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise MergeError(f"{where} is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("prompt"), str):
        raise MergeError(f'{where} is no sample: write an object with a text "prompt".')
    if unknown := sorted(content.keys() - {*_KEYS}):
        raise MergeError(f"{where}: unknown key {unknown[0]!r}; a sample has {', '.join(_KEYS)}.")
    named = content.get("expert", expert)
    if not isinstance(named, str) or (expert is not None and named != expert):
        raise MergeError(f'{where}: "expert" is {named!r}; it must be {expert or "the name of an expert"!r}.')
    paths = [content[key] for key in _ONE if content.get(key)] + list(content.get("images") or ())
    if wrong := [each for each in paths if not isinstance(each, str)]:
        raise MergeError(f"{where}: {wrong[0]!r} is no path of an image, a video or a sound.")
    document = {key: _stored(directory / content[key], where) for key in _ONE if content.get(key)}
    several = [_stored(directory / each, where) for each in content.get("images") or ()]
    digest = hashlib.sha256(content["prompt"].encode())
    for stored in [*document.values(), *several]:
        digest.update(hashlib.sha256(Path(stored["path"]).read_bytes()).digest())
    return Sample(named, content["prompt"], digest.hexdigest(), where, {**document, "images": several})


def _stored(path: Path, where: str) -> dict[str, Any]:
    """A medium as documents of tasks have it; MergeError if it does not exist."""
    if not path.is_file():
        raise MergeError(f"{where}: {path} does not exist.")
    return {"path": str(path)}


def by_expert(samples: Iterable[Sample], experts: Sequence[str], partial: bool = False) -> dict[str, list[Sample]]:
    """The samples of each of the `experts`, by the experts' names in the config.

    partial: whether experts may be without samples; these are then left out of what is returned.

    A sample names its expert as the config does, or by the last part of the path of the model or of its adapter.
    Equal samples of one expert count once.

    Raises:
        MergeError: a sample's expert is none of them, or could be several; or an expert has no samples.
    """
    short: dict[str, list[str]] = {}
    for name in experts:
        short.setdefault(Path(name.rpartition("+")[2]).name, []).append(name)
    found: dict[str, dict[str, Sample]] = {name: {} for name in experts}
    for sample in samples:
        meant = [sample.expert] if sample.expert in found else short.get(sample.expert, [])
        if len(meant) != 1:
            why = f"could be {' or '.join(meant)}" if meant else "is none of the experts"
            raise MergeError(f"{sample.where}: {sample.expert!r} {why}; the experts are {', '.join(experts)}.")
        found[meant[0]].setdefault(sample.digest, sample)
    without = [name for name, own in found.items() if not own]
    if without and not partial:
        raise MergeError(
            f"There are no samples for {', '.join(without)}: what it can do may be forgotten. Give every expert of the "
            "merge some, or accept that by --partial."
        )
    return {name: list(own.values()) for name, own in found.items() if own}


def split(samples: Mapping[str, Sequence[Sample]], per_expert: int | None, seed: int) -> dict[str, Split]:
    """The samples of each expert that are used, drawn by `seed`, with a quarter of them held back.

    per_expert: how many of each expert are drawn; all if it is None.

    Raises:
        MergeError: an expert has fewer samples than that, or too few to hold one back.
    """
    made: dict[str, Split] = {}
    for number, (expert, own) in enumerate(samples.items()):
        count = len(own) if per_expert is None else per_expert
        if len(own) < max(count, 2):
            raise MergeError(f"{expert} has {len(own)} samples, but {max(count, 2)} are needed.")
        ordered = sorted(own, key=lambda sample: sample.digest)  # the order of the file changes nothing
        drawn = random.Random(f"{seed} {number}").sample(ordered, count)
        held = max(1, round(count / _HELD_BACK))
        made[expert] = Split(tuple(drawn[held:]), tuple(drawn[:held]))
    return made
