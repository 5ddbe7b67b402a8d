"""Media of a request as processors take them: RGB pictures, frames of videos, samples of sounds.

Forms are those of `evaluation.media`: what a task hands over, not decoded before it is needed.
"""

import io
import math
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mergekit_mm.evaluation.model.pictures import picture
from mergekit_mm.evaluation.model.videos import Sampling, Video, video
from mergekit_mm.omni.files import load_sound, sound_seconds

__all__ = ["Sampling", "Video", "picture", "seconds", "sound", "video"]
Samples = npt.NDArray[np.float32]


def sound(given: Mapping[str, Any], sampling_rate: int) -> Samples:
    """Samples (n,) of float32 at `sampling_rate`, one channel: the mean of those there are.

    `given` has a `path`, or `bytes` of a file, or an `array` (samples,) or (samples, channels) with `sampling_rate`.
    PCM WAV is read by the standard library, other sounds by soundfile, and what that does not know, such as the sound
    of a video, by PyAV. ImportError: without these.
    """
    array = given.get("array")
    if array is None:
        content = given.get("bytes") or Path(given["path"]).read_bytes()
        name = str(given.get("path") or "a sound given as bytes")
        found = _read_sound(content, name)
        if found is None:
            return np.asarray(load_sound(io.BytesIO(content), sampling_rate, name), np.float32)
        array, rate = found
    else:
        array, rate = np.asarray(array, np.float32), int(given["sampling_rate"])
    mono = array if array.ndim == 1 else array.mean(axis=int(array.shape[0] > array.shape[1]))
    if rate == sampling_rate:
        return np.asarray(mono, np.float32)
    from scipy.signal import resample_poly  # a second of every start, otherwise

    common = math.gcd(rate, sampling_rate)
    return np.asarray(resample_poly(mono, sampling_rate // common, rate // common), np.float32)


def _read_sound(content: bytes, name: str) -> tuple[Samples, int] | None:
    """Samples (n, channels) and their rate, or None for what is neither a PCM WAV nor known to soundfile."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            samples = _from_pcm(file.readframes(file.getnframes()), width)
            return samples.reshape(-1, channels), rate
    except (wave.Error, EOFError):  # not PCM, or no WAV
        pass
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"{name} is no PCM WAV; to read it: pip install 'mergekit-mm[eval]' (soundfile)") from error
    try:
        return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None


def seconds(given: Mapping[str, Any]) -> float:
    """How long a sound is, by its header where that tells. The errors are those of `sound`."""
    array = given.get("array")
    if array is not None:
        return max(np.asarray(array).shape) / int(given["sampling_rate"])
    name = str(given.get("path") or "a sound given as bytes")

    def source() -> Any:
        return io.BytesIO(given["bytes"]) if given.get("bytes") else open(name, "rb")

    try:
        with source() as content, wave.open(content) as file:
            return file.getnframes() / file.getframerate()
    except (wave.Error, EOFError):
        pass
    try:
        import soundfile

        with source() as content:
            return float(soundfile.info(content).duration)
    except (ImportError, RuntimeError):  # the library is missing, or does not know the format
        with source() as content:
            return float(sound_seconds(content, name))


def _from_pcm(frames: bytes, width: int) -> Samples:
    """Numbers of `width` bytes, little endian; those of one byte have their zero at 128."""
    raw = np.frombuffer(frames, np.uint8).reshape(-1, width)
    if width == 1:
        return np.asarray((raw[:, 0] - 128.0) / 128, np.float32)
    padded = np.zeros((len(raw), 4), np.uint8)
    padded[:, 4 - width :] = raw  # the highest bytes of an int32
    return np.asarray(padded.view("<i4")[:, 0] / 2**31, np.float32)
