"""Media of a request as processors take them: RGB images, frames of videos, samples of audio.

The forms that are decoded are those of `evaluation.tasks.media`: what a task hands over, not decoded before it is
needed. Audio and video files go through the loaders of `mergekit_mm.omni`, so that a model hears and sees the same here
as when it is used.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mergekit_mm.evaluation.model.images import picture
from mergekit_mm.evaluation.model.videos import Sampling, Video, video
from mergekit_mm.omni.audio import audio_seconds, load_audio, resample

__all__ = ["Sampling", "Video", "picture", "seconds", "sound", "video"]
Samples = npt.NDArray[np.float32]


def sound(given: Mapping[str, Any], sampling_rate: int) -> Samples:
    """Samples (n,) of float32 at `sampling_rate` in Hz, as one channel: the mean of the channels.

    given: audio with a `path`, or `bytes` of a file, or an `array` (samples,) or (samples, channels) with its
        `sampling_rate`.

    Raises ImportError when nothing that is installed can read the file, ValueError for a file without audio.
    """
    array = given.get("array")
    if array is None:
        source, name = _file(given)
        samples: Samples = load_audio(source, sampling_rate, name)
        return samples
    array = np.asarray(array, np.float32)
    mono = array if array.ndim == 1 else array.mean(axis=int(array.shape[0] > array.shape[1]))
    resampled: Samples = resample(mono, int(given["sampling_rate"]), sampling_rate)
    return resampled


def seconds(given: Mapping[str, Any]) -> float:
    """How long audio lasts, by its header where that tells. The errors are those of `sound`."""
    array = given.get("array")
    if array is not None:
        return max(np.asarray(array).shape) / int(given["sampling_rate"])
    return float(audio_seconds(*_file(given)))


def _file(given: Mapping[str, Any]) -> tuple[Any, str]:
    """The path or the open file of audio, and its name in messages."""
    source = io.BytesIO(given["bytes"]) if given.get("bytes") else str(given["path"])
    return source, str(given.get("path") or "audio given as bytes")
