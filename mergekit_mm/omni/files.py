"""Sounds and videos from files: by the decoders that transformers prefers, where they are installed, else by PyAV."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from transformers.audio_utils import load_audio
from transformers.video_utils import VideoMetadata


def load_sound(source: Any, rate: int, name: str | None = None) -> Any:
    """The samples (n,) in float32, mono, at `rate` Hz, of a file, a URL or an open file (in messages `name`).

    Of a video, its sound. Raises ImportError when nothing can read it, ValueError for a file without sound.
    """
    if isinstance(source, str) and (_installed("torchcodec") or (_installed("soundfile") and _installed("soxr"))):
        return load_audio(source, sampling_rate=rate)
    name = name or str(source)
    av = _pyav(name, "transformers[audio]")
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    with _opened(av, source, name) as file:
        if not file.streams.audio:
            raise ValueError(f"{name} has no sound in it.")
        frames = [*file.decode(audio=0), None]  # None: what is left in the resampler
        parts = [made.to_ndarray()[0] for frame in frames for made in resampler.resample(frame)]
    return np.concatenate(parts)


def sound_seconds(source: Any, name: str) -> float:
    """How long the sound of a file is, by what its container says. The errors are those of `load_sound`."""
    av = _pyav(name, "transformers[audio]")
    with _opened(av, source, name) as file:
        if not file.streams.audio:
            raise ValueError(f"{name} has no sound in it.")
        stream = file.streams.audio[0]
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return float(file.duration or 0) / av.time_base


def _opened(av: Any, source: Any, name: str) -> Any:
    try:
        return av.open(source)
    except av.error.InvalidDataError as error:
        raise ValueError(f"{name} is no sound or video that can be read.") from error


def donors_read_videos() -> bool:
    """Whether the video processors of transformers can open files themselves."""
    return _installed("torchcodec")


def load_video(source: Any, choose: Callable[[Any], Any] | None) -> tuple[Any, Any]:
    """Frames (n, height, width, 3) of a file, a URL or an open file, and what is known of it.

    Raises ImportError without PyAV, ValueError for a file without frames.

    choose: metadata -> indices of the frames to keep, as a video processor's `sample_frames`; None: all of them.
    """
    name = source if isinstance(source, str) else "a video given as bytes"
    av = _pyav(name, "torchcodec")
    with _opened(av, source, name) as file:
        known = _what_is_known(file, name)
        count = known.total_num_frames
        known.frames_indices = [int(i) for i in (range(count) if choose is None else choose(known))]
    if not isinstance(source, str):
        source.seek(0)
    wanted, frames = set(known.frames_indices), {}
    with _opened(av, source, name) as file:
        for index, frame in enumerate(file.decode(video=0)):
            if index in wanted:
                frames[index] = _rgb(frame)
            if len(frames) == len(wanted):
                break
    if not frames:
        raise ValueError(f"{name} has no frames that can be read.")
    last = max(frames)  # a container may promise more than it holds
    return np.stack([frames[min(index, last)] for index in known.frames_indices]), known


def load_frame_at(source: str, share: float) -> Any:
    """The frame (height, width, 3) after a share (0 to 1) of those of a video file. The errors are `load_video`'s."""
    with _opened(_pyav(source, "torchcodec"), source, source) as file:
        if file.streams.video:
            stream = file.streams.video[0]
            times = sorted(packet.pts for packet in file.demux(stream) if packet.size and packet.pts is not None)
            if times:
                wanted = times[int(len(times) * share)]
                file.seek(wanted, stream=stream)  # seeks to the last key frame before the wanted one
                for frame in file.decode(stream):
                    if frame.pts is not None and frame.pts >= wanted:
                        return _rgb(frame)
    frames, _ = load_video(source, lambda known: [int(known.total_num_frames * share)])  # times are not told
    return frames[0]


def video_facts(source: Any, name: str) -> Any:
    """What is known of a video by its container. The errors are those of `load_video`."""
    with _opened(_pyav(name, "torchcodec"), source, name) as file:
        return _what_is_known(file, name)


def _what_is_known(file: Any, name: str) -> Any:
    if not file.streams.video:
        raise ValueError(f"{name} has no pictures in it.")
    stream = file.streams.video[0]
    # Where a container does not tell its length, packets are counted, which decodes nothing.
    count = stream.frames or sum(packet.size > 0 for packet in file.demux(stream))
    fps = float(stream.average_rate or 0) or None
    return VideoMetadata(
        total_num_frames=count,
        fps=fps,
        duration=count / fps if fps else None,
        video_backend="pyav",
        height=stream.height,
        width=stream.width,
    )


def _rgb(frame: Any) -> Any:
    """A frame (height, width, 3), what is transparent white: films of GIF and WebP may have such parts."""
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    seen = frame.to_ndarray(format="rgba").astype(np.uint16)
    opacity = seen[..., 3:]
    return ((seen[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _pyav(source: str, instead: str) -> Any:
    if not _installed("av"):
        raise ImportError(f"Nothing here can read {source}: pip install av, or '{instead}'.")
    import av

    return av
