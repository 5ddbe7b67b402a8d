"""Unlabelled samples: a prompt with its media, and the expert whose answer to it the merged model shall learn."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.checks import unreadable
from mergekit_mm.evaluation.model.images import picture
from mergekit_mm.evaluation.model.inputs import by_modality
from mergekit_mm.evaluation.tasks import media

Media = Mapping[str, Sequence[Any]]  # as requests of lm-eval have them: `visual` (images and videos) and `audio`
_ONE, _SEVERAL = ("image", "video", "audio"), ("images",)
_KEYS = ("expert", "prompt", *_ONE, *_SEVERAL)
_CONTENT = {"type", "path", "bytes", "frames", "array"}  # keys of a medium that name it or hold it
_HELD_BACK = 4  # one of so many samples is held back


@dataclass(frozen=True)
class Sample:
    """One question to one expert, with nothing of an answer.

    expert: the expert's name as the samples have it. prompt: with marks such as <image>. digest: the SHA-256 of the
    prompt, of the content of its media and of `until`, in hexadecimal. where: the place that it was read from, for
    messages and for the report. source: the file, the folder, or the split of a task that the place belongs to. open:
    returns the media, opened anew and not decoded. until: texts of which the first to be said ends the answer.
    """

    expert: str
    prompt: str
    digest: str
    where: str
    source: str
    open: Callable[[], Media] = field(repr=False, compare=False)
    until: tuple[str, ...] = ()

    def media(self) -> Media:
        """The media as the model `mllm` takes them, opened anew and not decoded."""
        return self.open()

    def check(self) -> None:
        """MergeError: one of the media cannot be read."""
        for modality, inputs in by_modality(self.media()).items():
            if flaw := next(filter(None, (unreadable(modality, given) for given in inputs)), None):
                raise MergeError(f"{self.where}: its {modality} cannot be read: {flaw}.")


def digest_of(prompt: str, contents: Iterable[bytes], until: Sequence[str] = ()) -> str:
    """The digest of a sample with this prompt and the contents of its media: images and videos, then sounds."""
    found = hashlib.sha256(prompt.encode())
    for content in contents:
        found.update(hashlib.sha256(content).digest())
    if until:
        found.update(json.dumps(until).encode())
    return found.hexdigest()


def from_media(
    expert: str, prompt: str, where: str, source: str, open_media: Callable[[], Media], until: tuple[str, ...] = ()
) -> Sample:
    """A sample with media as requests of lm-eval have them. MergeError: one of them cannot be read."""
    Sample(expert, prompt, "", where, source, open_media).check()
    shown = open_media()
    contents = [_content(given) for given in [*(shown.get("visual") or ()), *(shown.get("audio") or ())]]
    return Sample(expert, prompt, digest_of(prompt, contents, until), where, source, open_media, until)


def _content(given: Any) -> bytes:
    """What is special to a medium: its file, whatever the file is called; or its pixels or samples if it has none.

    How the frames of a video are to be taken, or what else is said of a medium, follows.
    """
    if not isinstance(given, Mapping):
        unread = getattr(given, "fp", None)
        if isinstance(unread, io.BytesIO):
            return unread.getvalue()
        pixels = picture(given)
        return f"{pixels.size}".encode() + pixels.tobytes()
    if given.get("bytes") is not None:
        content = bytes(given["bytes"])
    elif given.get("frames") is not None:
        content = b"".join(hashlib.sha256(_content(frame)).digest() for frame in given["frames"])
    elif given.get("array") is not None:
        content = np.asarray(given["array"], np.float32).tobytes()
    else:
        content = Path(given["path"]).read_bytes()
    more = {key: value for key, value in given.items() if value is not None and key not in _CONTENT}
    return content + (json.dumps(more, sort_keys=True, default=str).encode() if more else b"")


@dataclass(frozen=True)
class Split:
    """The samples of one expert: those that are trained on, and those by which the result is judged."""

    trained: tuple[Sample, ...]
    held_back: tuple[Sample, ...]

    @property
    def places(self) -> dict[str, str]:
        """The digest of each sample, and where it came from."""
        return {sample.digest: sample.where for sample in (*self.trained, *self.held_back)}

    @property
    def sources(self) -> str:
        """How many samples came from which file, folder or split of a task, in words."""
        counts = Counter(sample.source for sample in (*self.trained, *self.held_back))
        return "; ".join(f"{count} from {source}" for source, count in sorted(counts.items()))


def read_samples(path: Path, expert: str | None = None) -> list[Sample]:
    """The samples of a JSONL file.

    Each line is an object with `prompt`, `expert` (left out if all lines belong to the argument `expert`), and the
    paths of its media, below the file's directory if they are relative: `image`, `video`, `audio`, or a list `images`.

    Raises:
        MergeError: the file cannot be read, a line is no sample, or one of the media does not exist.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = [_sample(line, f"{path}, line {at}", path, expert) for at, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise MergeError(f"{path} has no samples.")
    return found


def _sample(line: str, where: str, source: Path, expert: str | None) -> Sample:
    directory = source.parent
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
    files = {key: directory / content[key] for key in _ONE if content.get(key)}
    several = [directory / each for each in content.get("images") or ()]
    return from_files(named, content["prompt"], where, str(source), files, several)


def from_files(
    expert: str, prompt: str, where: str, source: str, files: Mapping[str, Path], images: Sequence[Path] = ()
) -> Sample:
    """A sample whose media are files, which are not decoded: at most one of each kind, and further images.

    Raises:
        MergeError: one of the files does not exist.
    """
    in_order = [path for path in (files.get("video"), files.get("image"), *images, files.get("audio")) if path]
    if lost := next((path for path in in_order if not path.is_file()), None):
        raise MergeError(f"{where}: {lost} does not exist.")
    digest = digest_of(prompt, (path.read_bytes() for path in in_order))
    document = {kind: {"path": str(path)} for kind, path in files.items()}
    opened = partial(_opened, document, [{"path": str(path)} for path in images])
    return Sample(expert, prompt, digest, where, source, opened)


def _opened(document: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> Media:
    several = [media.image_or_stand_in(each) for each in images]
    return {"visual": media.visuals(document) + several, "audio": media.sounds(document)}


def meant(expert: str, experts: Sequence[str], where: str) -> str:
    """The one of `experts`, by their names in the config, that `expert` means.

    It is the name in the config, or the last part of the path of the model or of its adapter.

    Raises:
        MergeError: it is none of them, or could be several. where: what names it, for the message.
    """
    found = [expert] if expert in experts else [name for name in experts if short_name(name) == expert]
    if len(found) != 1:
        why = f"could be {' or '.join(found)}" if found else "is none of the experts"
        raise MergeError(f"{where}: {expert!r} {why}; the experts are {', '.join(experts)}.")
    return found[0]


def short_name(expert: str) -> str:
    """The last part of the path of an expert's model, or of its adapter if it has one."""
    return Path(expert.rpartition("+")[2]).name


def by_expert(samples: Iterable[Sample], experts: Sequence[str], partial: bool = False) -> dict[str, list[Sample]]:
    """The samples of each of the `experts`, by the experts' names in the config. Equal samples of one count once.

    partial: whether experts may be without samples; these are then left out of what is returned.

    Raises:
        MergeError: a sample's expert is none of them, or could be several; or an expert has no samples.
    """
    found: dict[str, dict[str, Sample]] = {name: {} for name in experts}
    for sample in samples:
        found[meant(sample.expert, experts, sample.where)].setdefault(sample.digest, sample)
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
        MergeError: an expert has fewer samples than that, or too few to hold one back; or a medium of one that is used
            cannot be read.
    """
    made: dict[str, Split] = {}
    for number, (expert, own) in enumerate(samples.items()):
        count = len(own) if per_expert is None else per_expert
        if len(own) < max(count, 2):
            raise MergeError(f"{expert} has {len(own)} samples, but {max(count, 2)} are needed.")
        ordered = sorted(own, key=lambda sample: sample.digest)  # the order of the file changes nothing
        drawn = random.Random(f"{seed} {number}").sample(ordered, count)
        for sample in drawn:
            sample.check()
        held = max(1, round(count / _HELD_BACK))
        made[expert] = Split(tuple(drawn[held:]), tuple(drawn[:held]))
    return made
