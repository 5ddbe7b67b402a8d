"""What is made sure of before the run: every medium can be read, the processor takes it, and sounds are heard whole."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.model.batching import Asked
from mergekit_mm.evaluation.model.inputs import Reader, same_inputs
from mergekit_mm.evaluation.model.sounds import probe
from mergekit_mm.evaluation.tasks.lazy_images import LazyImage, UnreadableImage, flaw_of
from mergekit_mm.omni.files import video_facts

_SMALL, _LONG = (
    64,
    8,
)  # pixels, and the ratio of the sides, beyond which a processor is asked whether it takes a picture


class Checks:
    """For one processor; each medium is looked at once, however many documents have it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._sizes: dict[tuple[str, tuple[int, int]], str | None] = {}
        self._seconds: dict[Any, float] = {}

    def flaws(self, media: Sequence[Mapping[str, Sequence[Any]]]) -> dict[int, str]:
        """Places in `media` (by modality) of which some medium cannot be asked about, and the reasons."""
        looks: dict[Any, tuple[str, Any]] = {}
        for each in media:
            looks |= {_identity(given): (modality, given) for modality, found in each.items() for given in found}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = dict(zip(looks, pool.map(lambda look: self._flaw(*look), looks.values()), strict=True))
        flaws: dict[int, str] = {}
        for place, each in enumerate(media):
            for modality, given in ((m, one) for m, of_kind in each.items() for one in of_kind):
                if unreadable := found[_identity(given)]:
                    flaws.setdefault(place, f"its {modality} cannot be read: {unreadable}")
                elif refused := self._refused(modality, given):
                    flaws.setdefault(place, f"its {modality} is refused: {refused}")
        return flaws

    def _flaw(self, modality: str, given: Any) -> str | None:
        try:
            if modality == "audio":
                self._seconds[_identity(given)] = decoding.seconds(given)
                return None
            return _of_video(given) if modality == "video" else _of_picture(given)
        except Exception as error:  # whatever decoders raise of a damaged file
            return f"{getattr(error, 'strerror', None) or error}" + _named(given, str(error))

    def _refused(self, modality: str, given: Any) -> str | None:
        """What the processor says of a picture of unusual size, tried on a blank one."""
        frames = given.get("frames") if modality == "video" else [given] if modality == "image" else None
        if not frames or isinstance(frames[0], LazyImage) or not isinstance(frames[0], Image.Image):
            return None
        size = frames[0].size
        if min(size) >= _SMALL and max(size) <= _LONG * min(size):
            return None
        if (modality, size) not in self._sizes:
            blank = Image.new("RGB", size)
            medium = {"type": "video", "frames": [blank] * len(frames)} if modality == "video" else blank
            self._sizes[modality, size] = self._tried(modality, medium, size)
        return self._sizes[modality, size]

    def _tried(self, modality: str, medium: Any, size: tuple[int, int]) -> str | None:
        media: dict[str, list[Any]] = {"image": [], "video": [], "audio": [], modality: [medium]}
        try:
            text = self._reader.writer.ask([(modality, 0), ("text", "?")])
            self._reader.encode([Asked("pictures", text, media)], "left")
        except EvaluationError as error:
            return f"{error} ({size[0]} x {size[1]} pixels)"
        except ValueError:  # a template that does not write such a prompt: nothing is known
            return None
        return None

    def length(self, sound: Any) -> float:
        """Seconds of a sound that was looked at."""
        return self._seconds[_identity(sound)]

    def measure_sounds(self) -> None:
        """Find out whether all of the longest sound is heard, and if not, how much of it."""
        if not self._seconds:
            return
        reader = self._reader
        rate = int(reader.parts["audio"].sampling_rate)
        text = reader.writer.ask([("audio", 0), ("text", "?")])

        def hears(samples: int) -> bool:
            made = []
            for loud_end in (False, True):
                media: dict[str, list[Any]] = {"image": [], "video": [], "audio": [probe(samples, rate, loud_end)]}
                made.append(reader.encode([Asked("a sound that was tried out", text, media)], "left"))
            return not same_inputs(*made)

        reader.window.measure(hears, max(self._seconds.values()), rate)


def _identity(given: Any) -> Any:
    """Files are the same by their path, other media as objects."""
    simple = isinstance(given, Mapping) and given.get("path") and not any(given.get(k) for k in ("bytes", "frames"))
    return str(given["path"]) if simple and "array" not in given else id(given)


def _of_picture(given: Any) -> str | None:
    if isinstance(given, UnreadableImage):
        return given.reason
    if isinstance(given, LazyImage):
        given.look()
        return None
    if not isinstance(given, Image.Image):
        Image.fromarray(np.asarray(given))
        return None
    unread = getattr(given, "fp", None)
    if isinstance(unread, io.BytesIO):
        return flaw_of(unread.getvalue())
    if unread is not None and (file := getattr(given, "filename", None)):
        return flaw_of(Path(file).read_bytes())
    return None if min(given.size) else "it has no pixels"


def _of_video(given: Mapping[str, Any]) -> str | None:
    frames = given.get("frames")
    if frames is not None:
        sizes = {frame.size for frame in frames if isinstance(frame, Image.Image) and not isinstance(frame, LazyImage)}
        if not len(frames) or len(sizes) > 1:
            return f"a video needs frames of one size, and has sizes {sorted(sizes)}"
        return next((flaw for frame in frames if (flaw := _of_picture(frame))), None)
    name = str(given.get("path") or "a video given as bytes")
    source = io.BytesIO(given["bytes"]) if given.get("bytes") is not None else name
    if isinstance(source, str) and "://" not in source and not Path(source).is_file():
        return f"{source} does not exist"
    return None if video_facts(source, name).total_num_frames else f"{name} has no frames"


def _named(given: Any, said: str) -> str:
    path = str(given.get("path") or "") if isinstance(given, Mapping) else ""
    return f" ({path})" if path and path not in said else ""
