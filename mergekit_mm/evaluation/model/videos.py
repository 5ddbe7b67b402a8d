"""Videos of a request as processors take them: which of their frames, and at which times those were."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers.video_utils import VideoMetadata

from mergekit_mm.evaluation.model.pictures import picture
from mergekit_mm.omni.files import load_video

Frames = npt.NDArray[np.uint8]
_TOLD = ("total_num_frames", "fps", "duration", "frames_indices")
_KEYS = {"type", "path", "bytes", "frames", "fps", "timestamps", "num_frames", "min_frames", "max_frames"}


class Video(NamedTuple):
    """Frames (n, height, width, 3) of uint8, and where in the film they were, as transformers calls it, if known."""

    frames: Frames
    metadata: dict[str, Any] | None


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken: `num_frames`, or `fps` a second, evenly; all of them without either.

    `max_frames` and `min_frames` bound their number. `choose` (metadata -> indices) is a processor's own way instead.
    """

    num_frames: int | None = None
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    choose: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.num_frames and self.fps:
            raise ValueError(f"num_frames={self.num_frames} and fps={self.fps} exclude each other")

    def over(self, others: Mapping[str, Any]) -> Sampling:
        """This one, completed by what `others` say; of number and rate, the own one counts."""
        decided = self.num_frames or self.fps or self.choose
        known = {each.name: getattr(self, each.name) or others.get(each.name) for each in fields(self)}
        return Sampling(**(known | ({"num_frames": self.num_frames, "fps": self.fps} if decided else {})))

    def indices(self, known: Any) -> list[int]:
        """Places of the frames taken, of a video with the metadata `known`. ValueError: a rate, and no times."""
        total: int = known.total_num_frames
        if self.choose is not None:
            return [int(at) for at in self.choose(known)]
        if self.fps and not known.fps:
            raise ValueError(
                f"fps={self.fps} is asked for, and when its frames were is not known: give `fps` or `timestamps`"
            )
        wanted = self.num_frames or (round(total / known.fps * self.fps) if self.fps else total)
        wanted = min(max(wanted, self.min_frames or 1), self.max_frames or total, total)
        if self.fps and wanted < total:  # frames are counted from the first one, as transformers does
            return [int(at) for at in np.arange(wanted) * total / wanted]
        return sorted({round(at) for at in np.linspace(0, total - 1, wanted)})


def video(given: Mapping[str, Any], num_frames: int | None = None, sampling: Sampling | None = None) -> Video:
    """The frames that `sampling`, or a number, and where these leave it open the video itself asks for.

    A video is a file (`path` or `bytes`), of which its `num_frames` or `fps` are taken, or a list of `frames`, of which
    `fps` or `timestamps` (seconds) say when they were. ValueError: frames of different sizes, a file without frames,
    a key that a video does not have. ImportError: no PyAV to read the file.
    """
    if unknown := sorted(given.keys() - _KEYS):
        raise ValueError(f"a video has no {', '.join(unknown)}, only {', '.join(sorted(_KEYS))}")
    asked = sampling or Sampling(num_frames=num_frames)
    if given.get("frames") is not None:
        return _listed(given, asked.over({k: given.get(k) for k in ("num_frames", "min_frames", "max_frames")}))
    if given.get("timestamps") is not None:
        raise ValueError("timestamps are of a list of frames, and this video is a file")
    asked = asked.over(given)
    whole = asked == Sampling()
    source = str(given["path"]) if given.get("bytes") is None else io.BytesIO(given["bytes"])
    frames, known = load_video(source, None if whole else asked.indices)
    return Video(frames, {name: getattr(known, name) for name in _TOLD} if known.fps else None)


def _listed(given: Mapping[str, Any], asked: Sampling) -> Video:
    frames = given["frames"]
    known, times = _times_of(frames, given)
    places = range(len(frames)) if asked == Sampling() else asked.indices(known)
    shown = [np.asarray(picture(frames[at])) for at in places]
    if not shown or len({frame.shape for frame in shown}) > 1:
        raise ValueError(f"a video needs frames of one size, and has sizes {sorted({f.shape[1::-1] for f in shown})}")
    told = {name: getattr(known, name) for name in _TOLD} | {"frames_indices": [times[at] for at in places]}
    return Video(np.stack(shown), told if known.fps else None)


def _times_of(frames: Sequence[Any], given: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """What is known of a list of frames, and where each of them was in units of its rate."""
    rate, stamps, count = given.get("fps"), given.get("timestamps"), len(frames)
    places: list[Any] = list(range(count))
    if stamps is not None:
        stamps = [float(at) for at in stamps]
        if rate is not None or len(stamps) != count or any(b <= a for a, b in pairwise(stamps)):
            raise ValueError(
                f"timestamps are as many rising seconds as frames ({count}), without fps: {stamps}, fps={rate}"
            )
        rate = (count - 1) / (stamps[-1] - stamps[0]) if count > 1 else 1.0
        places = [at * rate for at in stamps]
    if rate is not None and not rate > 0:
        raise ValueError(f"fps of a list of frames is {rate}; it must be above 0")
    known = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate if rate else None)
    known.frames_indices = places
    return known, places


def has_times(given: Mapping[str, Any]) -> bool:
    """Whether it is known when the frames of a video were; of a file it nearly always is."""
    return given.get("frames") is None or given.get("fps") is not None or given.get("timestamps") is not None
