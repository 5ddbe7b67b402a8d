"""Videos of a request as processors take them: which of their frames, and at which times these were."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers.video_utils import VideoMetadata

from mergekit_mm.evaluation.model.images import picture
from mergekit_mm.omni.video import load_video

Frames = npt.NDArray[np.uint8]
_METADATA = ("total_num_frames", "fps", "duration", "frames_indices")  # fields of the metadata that processors get
_KEYS = {"type", "path", "bytes", "frames", "fps", "timestamps", "num_frames", "min_frames", "max_frames"}


class Video(NamedTuple):
    """Frames (n, height, width, 3) of uint8, and transformers' metadata of the video, where its times are known."""

    frames: Frames
    metadata: dict[str, Any] | None


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken: `num_frames`, or `fps` per second, evenly; all frames without either.

    `max_frames` and `min_frames` bound their number. `choose` (metadata -> indices) is a processor's own rule, which
    counts instead.
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
        """This sampling, completed from `others`, whose number and rate count only where this one has neither."""
        decided = self.num_frames or self.fps or self.choose
        completed = {each.name: getattr(self, each.name) or others.get(each.name) for each in fields(self)}
        return Sampling(**(completed | ({"num_frames": self.num_frames, "fps": self.fps} if decided else {})))

    def indices(self, metadata: Any) -> list[int]:
        """The indices of the frames taken. ValueError: a rate is asked for, and the times of the frames are unknown."""
        total: int = metadata.total_num_frames
        if self.choose is not None:
            return [int(at) for at in self.choose(metadata)]
        if self.fps and not metadata.fps:
            raise ValueError(
                f"fps={self.fps} is asked for, and when its frames were is not known: give `fps` or `timestamps`"
            )
        wanted = self.num_frames or (round(total / metadata.fps * self.fps) if self.fps else total)
        wanted = min(max(wanted, self.min_frames or 1), self.max_frames or total, total)
        if self.fps and wanted < total:  # steps are counted from the first frame, as in transformers
            return [int(at) for at in np.arange(wanted) * total / wanted]
        return sorted({round(at) for at in np.linspace(0, total - 1, wanted)})


def video(given: Mapping[str, Any], num_frames: int | None = None, sampling: Sampling | None = None) -> Video:
    """The frames that `sampling` takes, or else `num_frames` of them; the video's own keys say what these leave open.

    given: a file (`path` or `bytes`), which may say `num_frames`, `fps`, `min_frames` and `max_frames` to take of it;
        or a list of `frames`, of which `fps` or `timestamps` (seconds) say when they were.

    Raises ValueError for frames of different sizes, a file without frames, or a key that a video does not have;
    ImportError without PyAV, which reads the file.
    """
    if unknown := sorted(given.keys() - _KEYS):
        raise ValueError(f"a video has no {', '.join(unknown)}, only {', '.join(sorted(_KEYS))}")
    asked = sampling or Sampling(num_frames=num_frames)
    if given.get("frames") is not None:
        return _from_frames(given, asked.over({k: given.get(k) for k in ("num_frames", "min_frames", "max_frames")}))
    if given.get("timestamps") is not None:
        raise ValueError("timestamps are of a list of frames, and this video is a file")
    asked = asked.over(given)
    source = str(given["path"]) if given.get("bytes") is None else io.BytesIO(given["bytes"])
    frames, metadata = load_video(source, None if asked == Sampling() else asked.indices)
    return Video(frames, {name: getattr(metadata, name) for name in _METADATA} if metadata.fps else None)


def _from_frames(given: Mapping[str, Any], asked: Sampling) -> Video:
    frames = given["frames"]
    metadata = _metadata_of(frames, given)
    indices = range(len(frames)) if asked == Sampling() else asked.indices(metadata)
    shown = [np.asarray(picture(frames[at])) for at in indices]
    if not shown or len({frame.shape for frame in shown}) > 1:
        raise ValueError(f"a video needs frames of one size, and has sizes {sorted({f.shape[1::-1] for f in shown})}")
    metadata.frames_indices = [metadata.frames_indices[at] for at in indices]
    return Video(np.stack(shown), {name: getattr(metadata, name) for name in _METADATA} if metadata.fps else None)


def _metadata_of(frames: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """transformers' metadata of a list of frames; `frames_indices` has the time of each frame in units of 1 / fps."""
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
    metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate if rate else None)
    metadata.frames_indices = places
    return metadata


def has_times(given: Mapping[str, Any]) -> bool:
    """Whether the times of a video's frames are known; of a file they nearly always are."""
    return given.get("frames") is None or given.get("fps") is not None or given.get("timestamps") is not None
