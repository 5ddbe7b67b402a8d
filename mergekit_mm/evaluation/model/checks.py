"""Checks before the run: every input can be read, the processor takes it, and audio is heard whole."""

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
from mergekit_mm.evaluation.model.audio import probe
from mergekit_mm.evaluation.model.batching import PreparedRequest
from mergekit_mm.evaluation.model.inputs import Reader, same_inputs
from mergekit_mm.evaluation.tasks.lazy_images import LazyImage, UnreadableImage, flaw_of
from mergekit_mm.omni.video import video_metadata

# Images with a side of fewer pixels, or with sides of a larger ratio, are tried on the processor before the run.
_SMALL, _LONG = 64, 8


class MediaChecks:
    """The checks for one processor; each input is looked at once, however many documents have it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._sizes: dict[tuple[str, tuple[int, int]], str | None] = {}
        self._seconds: dict[Any, float] = {}

    def flaws(self, media: Sequence[Mapping[str, Sequence[Any]]]) -> dict[int, str]:
        """Index of a request in `media` (by modality) -> why one of its inputs cannot be given to the model."""
        inputs: dict[Any, tuple[str, Any]] = {}
        for each in media:
            inputs |= {_identity(given): (modality, given) for modality, found in each.items() for given in found}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            looked = pool.map(lambda one: unreadable(one[0], one[1], self._seconds), inputs.values())
            found = dict(zip(inputs, looked, strict=True))
        flaws: dict[int, str] = {}
        for index, each in enumerate(media):
            for modality, given in ((m, one) for m, of_kind in each.items() for one in of_kind):
                if flaw := found[_identity(given)]:
                    flaws.setdefault(index, f"its {modality} cannot be read: {flaw}")
                elif refused := self._refused(modality, given):
                    flaws.setdefault(index, f"its {modality} is refused: {refused}")
        return flaws

    def _refused(self, modality: str, given: Any) -> str | None:
        """Why the processor refuses an image or video of an unusual size, which is tried on a blank one."""
        frames = given.get("frames") if modality == "video" else [given] if modality == "image" else None
        if not frames or isinstance(frames[0], LazyImage) or not isinstance(frames[0], Image.Image):
            return None
        size = frames[0].size
        if min(size) >= _SMALL and max(size) <= _LONG * min(size):
            return None
        if (modality, size) not in self._sizes:
            blank = Image.new("RGB", size)
            tried = {"type": "video", "frames": [blank] * len(frames)} if modality == "video" else blank
            self._sizes[modality, size] = self._refusal(modality, tried, size)
        return self._sizes[modality, size]

    def _refusal(self, modality: str, given: Any, size: tuple[int, int]) -> str | None:
        try:
            self._reader.encode([self._request(modality, given, f"a blank {modality} of the same size")], "left")
        except EvaluationError as error:
            return f"{error} ({size[0]} x {size[1]} pixels)"
        except ValueError:  # the chat template does not render such a prompt, so that nothing is found out
            return None
        return None

    def _request(self, modality: str, given: Any, where: str) -> PreparedRequest:
        media: dict[str, list[Any]] = {"image": [], "video": [], "audio": [], modality: [given]}
        return PreparedRequest(where, self._reader.renderer.render([(modality, 0), ("text", "?")]), media)

    def audio_seconds(self, given: Any) -> float:
        """The length of an audio input that `flaws` has looked at."""
        return self._seconds[_identity(given)]

    def measure_audio_window(self) -> None:
        """Find out whether the longest audio input is heard whole, and if not, how much of it is."""
        if not self._seconds:
            return
        reader = self._reader
        rate = int(reader.parts["audio"].sampling_rate)

        def hears(samples: int) -> bool:
            tried = [
                self._request("audio", probe(samples, rate, loud_end), "audio that was tried out")
                for loud_end in (False, True)
            ]
            return not same_inputs(*(reader.encode([one], "left") for one in tried))

        reader.window.measure(hears, max(self._seconds.values()), rate)


def unreadable(modality: str, given: Any, seconds: dict[Any, float] | None = None) -> str | None:
    """Why an input cannot be read, or None. Of an audio or a video file, the header is looked at.

    seconds: gets the length of an audio input, by its identity.
    """
    try:
        if modality == "audio":
            length = decoding.seconds(given)
            if seconds is not None:
                seconds[_identity(given)] = length
            return None
        return _video_flaw(given) if modality == "video" else _image_flaw(given)
    except Exception as error:  # decoders raise errors of any type for a damaged file
        return f"{getattr(error, 'strerror', None) or error}" + _named(given, str(error))


def _identity(given: Any) -> Any:
    """A key for an input: the path of a file, the id of any other object."""
    simple = isinstance(given, Mapping) and given.get("path") and not any(given.get(k) for k in ("bytes", "frames"))
    return str(given["path"]) if simple and "array" not in given else id(given)


def _image_flaw(given: Any) -> str | None:
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


def _video_flaw(given: Mapping[str, Any]) -> str | None:
    frames = given.get("frames")
    if frames is not None:
        sizes = {frame.size for frame in frames if isinstance(frame, Image.Image) and not isinstance(frame, LazyImage)}
        if not len(frames) or len(sizes) > 1:
            return f"a video needs frames of one size, and has sizes {sorted(sizes)}"
        return next((flaw for frame in frames if (flaw := _image_flaw(frame))), None)
    name = str(given.get("path") or "a video given as bytes")
    source = io.BytesIO(given["bytes"]) if given.get("bytes") is not None else name
    if isinstance(source, str) and "://" not in source and not Path(source).is_file():
        return f"{source} does not exist"
    return None if video_metadata(source, name).total_num_frames else f"{name} has no frames"


def _named(given: Any, said: str) -> str:
    path = str(given.get("path") or "") if isinstance(given, Mapping) else ""
    return f" ({path})" if path and path not in said else ""
