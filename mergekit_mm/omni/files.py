"""Sounds and videos from files: by the decoders that transformers prefers, where they are installed, else by PyAV."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from transformers.audio_utils import load_audio
from transformers.video_utils import VideoMetadata


def load_sound(source: str, rate: int) -> Any:
    """The samples (n,) of a file or URL in float32, mono, at `rate` Hz. Raises ImportError when nothing can read it."""
    if _installed("torchcodec") or (_installed("soundfile") and _installed("soxr")):
        return load_audio(source, sampling_rate=rate)
    av = _pyav(source, "transformers[audio]")
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    with av.open(source) as file:
        if not file.streams.audio:
            raise ValueError(f"{source} has no sound in it.")
        frames = [*file.decode(audio=0), None]  # None: what is left in the resampler
        parts = [made.to_ndarray()[0] for frame in frames for made in resampler.resample(frame)]
    return np.concatenate(parts)


def donors_read_videos() -> bool:
    """Whether the video processors of transformers can open files themselves."""
    return _installed("torchcodec")


def load_video(source: str, choose: Callable[[Any], Any] | None) -> tuple[Any, Any]:
    """Frames (n, height, width, 3) of a file or URL, and what is known of it.

    Raises ImportError without PyAV, ValueError for a file without frames.

    choose: metadata -> indices of the frames to keep, as a video processor's `sample_frames`; None: all of them.
    """
    av = _pyav(source, "torchcodec")
    with av.open(source) as file:
        if not file.streams.video:
            raise ValueError(f"{source} has no pictures in it.")
        stream = file.streams.video[0]
        # not every container says; then the packets are counted, which decodes nothing
        count = stream.frames or sum(packet.size > 0 for packet in file.demux(stream))
        fps = float(stream.average_rate or 0) or None
        known = VideoMetadata(
            total_num_frames=count,
            fps=fps,
            duration=count / fps if fps else None,
            video_backend="pyav",
            height=stream.height,
            width=stream.width,
        )
        known.frames_indices = [int(i) for i in (range(count) if choose is None else choose(known))]
    wanted, frames = set(known.frames_indices), {}
    with av.open(source) as file:
        for index, frame in enumerate(file.decode(video=0)):
            if index in wanted:
                frames[index] = frame.to_ndarray(format="rgb24")
            if len(frames) == len(wanted):
                break
    if not frames:
        raise ValueError(f"{source} has no frames that can be read.")
    last = max(frames)  # a container may promise more than it holds
    return np.stack([frames[min(index, last)] for index in known.frames_indices]), known


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _pyav(source: str, instead: str) -> Any:
    if not _installed("av"):
        raise ImportError(f"Nothing here can read {source}: pip install av, or '{instead}'.")
    import av

    return av
