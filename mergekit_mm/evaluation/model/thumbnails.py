"""Small copies of what a question shows or plays, to be embedded in a page: pictures, frames of videos, sounds.

A copy is a `data:` URI: pictures as WebP with a side of so many pixels, of a video four frames of half that side, of a
sound the first seconds in one channel (MP3 where soundfile is installed, else WAV). What cannot be read is a copy
without parts, with the reason as its note, so that a page about ten thousand questions does not fail for one of them.

`Writer` keeps them in files beside the samples of a run, one line of JSON a document: `{"doc_hash": ..., "media":
[{"kind": "image", "parts": [...], "note": ""}]}`. `doc_hash` is lm-eval's, which its samples have too.
"""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.utils import handle_non_serializable, hash_string
from PIL import Image

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.model.inputs import by_modality

SIDE = 320  # pixels of the longer side of a picture, if nothing else is said
_FRAMES = 4
_SECONDS = 12.0
_RATE = 16000  # Hz


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of a medium. kind: image, video or audio. parts: `data:` URIs, of a video one a frame.

    note: what the copy lacks of the medium, or why there is none.
    """

    kind: str
    parts: tuple[str, ...] = ()
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes of it in a page."""
        return sum(map(len, self.parts)) + len(self.note)


def thumbnails(media: Mapping[str, Sequence[Any]], side: int = SIDE) -> list[Thumbnail]:
    """A copy of each medium of a request, as lm-eval has them. side: pixels of the longer side of a picture."""
    return [_made(kind, each, side) for kind, given in by_modality(media).items() for each in given]


def _made(kind: str, given: Any, side: int) -> Thumbnail:
    try:
        if kind == "image":
            return Thumbnail(kind, (_picture(decoding.picture(given), side),))
        return _video(given, side // 2) if kind == "video" else _sound(given)
    except Exception as error:  # the readers of media raise errors of any type
        return Thumbnail(kind, note=f"cannot be read: {str(error) or type(error).__name__}")


def _picture(picture: Image.Image, side: int) -> str:
    small = picture.copy()
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=60, method=4)
    return _uri("image/webp", encoded.getvalue())


def _video(given: Mapping[str, Any], side: int) -> Thumbnail:
    frames = decoding.video(given, _FRAMES).frames
    count = f"{len(frames)} of its frames"
    return Thumbnail("video", tuple(_picture(Image.fromarray(frame), side) for frame in frames), count)


def _sound(given: Mapping[str, Any]) -> Thumbnail:
    heard = decoding.sound(given, _RATE)
    part = heard[: int(_SECONDS * _RATE)]
    note = "" if len(part) == len(heard) else f"the first {_SECONDS:.0f} of {len(heard) / _RATE:.1f} seconds"
    return Thumbnail("audio", (_encoded(part),), note)


def _encoded(samples: decoding.Samples) -> str:
    encoded = io.BytesIO()
    try:
        import soundfile

        soundfile.write(encoded, samples, _RATE, format="MP3", compression_level=0.9)
        return _uri("audio/mpeg", encoded.getvalue())
    except (ImportError, RuntimeError, TypeError):  # soundfile is missing, or too old to write MP3.
        encoded = io.BytesIO()
    with wave.open(encoded, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(_RATE // 2)
        file.writeframes(((np.clip(samples[::2], -1, 1) + 1) * 127.5).astype(np.uint8).tobytes())
    return _uri("audio/wav", encoded.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def hash_of(document: Any) -> str:
    """lm-eval's hash of a document, which its samples have as `doc_hash`."""
    return str(hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)))


class Writer:
    """Writes the copies of what a run asks into `thumbnails_<task>.jsonl`, each document once."""

    def __init__(self, folder: str, rank: int = 0) -> None:
        """folder: made if it is missing. rank: of this process; each has files of its own.

        EvaluationError: the folder cannot be made.
        """
        self.folder, self._rank = Path(folder), rank
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"thumbnails={folder}: {error.strerror or error}") from error
        self._written: dict[Path, set[str]] = {}

    def add(self, requests: Sequence[Any]) -> None:
        """Write what the documents of these requests show, unless it is there already."""
        for request in requests:
            path = self.folder / f"thumbnails_{request.task_name}{f'_rank{self._rank}' * bool(self._rank)}.jsonl"
            written = self._written.get(path)
            if written is None:
                written = self._written[path] = _documents_in(path)
            document = hash_of(request.doc)
            if document not in written and any(request.args[2].values()):
                written.add(document)
                line = {"doc_hash": document, "media": [asdict(each) for each in thumbnails(request.args[2])]}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def _documents_in(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with path.open(encoding="utf-8") as lines:
        return {json.loads(line)["doc_hash"] for line in lines}
