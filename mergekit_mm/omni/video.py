"""The one loader of video files: the frames that a model sees are the same when it is evaluated and when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata


def load_video(source: Any, choose: Callable[[Any], Any] | None) -> tuple[Any, Any]:
    """Frames (n, height, width, 3) in uint8 of a path, a URL or an open binary file, and transformers' metadata of it.

    choose: metadata -> indices of the frames to keep, as a video processor's `sample_frames`; None keeps all frames.

    Raises ImportError without PyAV, ValueError for a file without frames.
    """
    name = source if isinstance(source, str) else "a video given as bytes"
    with open_container(source, name) as file:
        metadata = _metadata_of(file, name)
        count = metadata.total_num_frames
        metadata.frames_indices = [int(i) for i in (range(count) if choose is None else choose(metadata))]
    if not isinstance(source, str):
        source.seek(0)
    wanted, frames = set(metadata.frames_indices), {}
    with open_container(source, name) as file:
        for index, frame in enumerate(file.decode(video=0)):
            if index in wanted:
                frames[index] = _rgb(frame)
            if len(frames) == len(wanted):
                break
    if not frames:
        raise ValueError(f"{name} has no frames that can be read.")
    last = max(frames)  # a container may promise more frames than it holds
    return np.stack([frames[min(index, last)] for index in metadata.frames_indices]), metadata


def load_frame_at(source: str, share: float) -> Any:
    """The frame (height, width, 3) in uint8 at a share (0 to 1) of a video file. The errors are those of `load_video`.

    Only the frames from the last key frame on are decoded, where the container says when its frames are.
    """
    with open_container(source, source) as file:
        if file.streams.video:
            stream = file.streams.video[0]
            times = sorted(packet.pts for packet in file.demux(stream) if packet.size and packet.pts is not None)
            if times:
                wanted = times[int(len(times) * share)]
                file.seek(wanted, stream=stream)  # seeks to the last key frame before the wanted one
                for frame in file.decode(stream):
                    if frame.pts is not None and frame.pts >= wanted:
                        return _rgb(frame)
    frames, _ = load_video(source, lambda metadata: [int(metadata.total_num_frames * share)])
    return frames[0]


def video_metadata(source: Any, name: str) -> Any:
    """transformers' metadata of a video, from its container. The errors are those of `load_video`."""
    with open_container(source, name) as file:
        return _metadata_of(file, name)


def read_by_donors() -> bool:
    """Whether donors' processors have to read video files: there is torchcodec, which they use, and no PyAV."""
    return bool(find_spec("torchcodec")) and not find_spec("av")


def open_container(source: Any, name: str, instead: str = "torchcodec") -> Any:
    """A path, a URL or an open binary file (`name` in messages), opened by PyAV.

    Raises ImportError, which advises `instead` too, without PyAV, ValueError for what is no audio or video file.
    """
    if not find_spec("av"):
        raise ImportError(f"Nothing here can read {name}: pip install av, or {instead}.")
    import av

    try:
        return av.open(source)
    except av.error.InvalidDataError as error:
        raise ValueError(f"{name} is no audio or video file that can be read.") from error


def _metadata_of(file: Any, name: str) -> Any:
    if not file.streams.video:
        raise ValueError(f"{name} has no images in it.")
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
    """A frame (height, width, 3) in uint8, on white: videos in GIF and WebP may have transparent parts."""
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    opacity = rgba[..., 3:]
    return ((rgba[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
