"""Samples from a folder: media with prompts beside them, as data sets lie on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit_mm.align.samples import Sample, from_files
from mergekit_mm.errors import MergeError

METADATA = "metadata.jsonl"
_KINDS = {
    "image": "png jpg jpeg webp bmp gif tif tiff",
    "video": "mp4 mkv webm mov avi",
    "audio": "wav flac mp3 ogg opus m4a aac",
}
_KIND_OF = {f".{ending}": kind for kind, endings in _KINDS.items() for ending in endings.split()}


def read_folder(folder: Path, expert: str | None = None) -> list[Sample]:
    """The samples of a folder; without `expert`, each folder within is that of the expert whose name it has.

    The folder of an expert has either

    - `metadata.jsonl`, as data sets of Hugging Face (imagefolder, audiofolder, videofolder) have it: in each line an
      object with `prompt`, and with `file_name` or `file_names`, which are paths below the folder. Other keys, such as
      captions, labels and answers, are not read;
    - or `NAME.txt` files with a prompt each. A medium `NAME.png`, `NAME.wav` and so on beside it belongs to it, one of
      each kind; without any the sample is a text.

    Raises:
        MergeError: there are no samples, or a file is of no known kind, has no prompt or does not exist.
    """
    if expert is None:
        own = [path for path in _listed(folder) if path.is_dir()]
        if len(own) < len(_listed(folder)) or not own:
            raise MergeError(
                f"{folder} does not hold one folder for each expert and nothing else. If all of it is for one expert: "
                f"--samples EXPERT={folder}"
            )
        return [sample for path in own for sample in read_folder(path, path.name)]
    found = list(_by_metadata(folder, expert) if (folder / METADATA).is_file() else _by_names(folder, expert))
    if not found:
        raise MergeError(f"{folder} has no samples.")
    return found


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of names, without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _by_metadata(folder: Path, expert: str) -> Iterator[Sample]:
    source = folder / METADATA
    for at, line in enumerate(_text(source).splitlines(), 1):
        where = f"{source}, line {at}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise MergeError(f"{where} is no JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            other = ", ".join(row) if isinstance(row, dict) else "no object"
            raise MergeError(f'{where} has no text "prompt" (it has {other}): write what the expert shall be asked.')
        yield _sample(expert, row["prompt"], where, source, [folder / name for name in _named(row, where)])


def _named(row: Mapping[str, Any], where: str) -> list[str]:
    names = [row["file_name"]] if row.get("file_name") else []
    names += row.get("file_names") or []
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise MergeError(f"{where}: {wrong[0]!r} is no name of a file.")
    return names


def _by_names(folder: Path, expert: str) -> Iterator[Sample]:
    beside: dict[str, list[Path]] = {}
    for path in _listed(folder):
        if path.suffix.lower() not in {*_KIND_OF, ".txt"} or path.is_dir():
            raise MergeError(f"{path} is neither a prompt (.txt) nor an image, a video or a sound; take it away.")
        beside.setdefault(path.stem, []).append(path)
    for stem, paths in beside.items():
        prompt = folder / f"{stem}.txt"
        if prompt not in paths:
            raise MergeError(f"{paths[0]} has no prompt: write what the expert shall be asked into {prompt}.")
        where, files = f"{folder}, {prompt.name}", [path for path in paths if path != prompt]
        if len({_KIND_OF[path.suffix.lower()] for path in files}) < len(files):
            raise MergeError(f"{where} has several media of one kind: {', '.join(path.name for path in files)}.")
        yield _sample(expert, _text(prompt), where, folder, files)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise MergeError(f"{path} is no text: {error}") from error


def _sample(expert: str, prompt: str, where: str, source: Path, paths: list[Path]) -> Sample:
    """A sample with media of the kinds that their names tell: any number of images, at most one of each other kind."""
    if not prompt:
        raise MergeError(f"{where}: the prompt is empty.")
    files: dict[str, Path] = {}
    images: list[Path] = []
    for path in paths:
        kind = _KIND_OF.get(path.suffix.lower())
        if kind is None:
            raise MergeError(f"{where}: {path} has no ending of an image, a video or a sound.")
        if kind == "image":
            images.append(path)
        elif files.setdefault(kind, path) != path:
            raise MergeError(f"{where}: a sample has at most one {kind}, not {files[kind].name} and {path.name}.")
    return from_files(expert, prompt, where, str(source), files, images)
