"""Media of a request as processors take them: RGB pictures, frames of videos, samples of sounds.

Forms are those of `evaluation.media`: what a task hands over, not decoded before it is needed.
"""

import io
import math
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mergekit_mm.omni.files import load_video

Frames = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]


class Video(NamedTuple):
    """Frames (n, height, width, 3) of uint8, and where in the film they were, as transformers calls it, if known."""

    frames: Frames
    metadata: dict[str, Any] | None


def picture(given: Any) -> Image.Image:
    """An RGB copy of a picture (PIL, or an array); what is not loaded yet stays so, or all would fill the memory.

    Turned upright where the file says how, as `datasets` and transformers do; 16 bits become 8.
    """
    if not isinstance(given, Image.Image):
        return Image.fromarray(np.asarray(given)).convert("RGB")
    unread = getattr(given, "fp", None)
    source = Image.open(io.BytesIO(unread.getvalue())) if isinstance(unread, io.BytesIO) else given
    source = ImageOps.exif_transpose(source)
    if source.mode.startswith("I;16"):  # Pillow would cut them off at 255: a white picture
        source = Image.fromarray((np.asarray(source) >> 8).astype(np.uint8))
    return source.convert("RGB")


def video(given: Mapping[str, Any], num_frames: int | None = None) -> Video:
    """The frames given, or `num_frames` of a file, evenly from its first to its last (default: as many as it says).

    ValueError: frames of different sizes, a file without frames. ImportError: no PyAV to read the file.
    """
    if given.get("frames") is None:
        return _read_frames(str(given["path"]), num_frames or given.get("num_frames"))
    shown = [np.asarray(picture(frame)) for frame in given["frames"]]
    if not shown or len({frame.shape for frame in shown}) > 1:
        raise ValueError(f"a video needs frames of one size, and has sizes {sorted({f.shape[1::-1] for f in shown})}")
    return Video(np.stack(shown), None)


def _read_frames(path: str, num_frames: int | None) -> Video:
    def evenly(known: Any) -> list[int]:
        count = min(num_frames or known.total_num_frames, known.total_num_frames)
        return sorted({round(at) for at in np.linspace(0, known.total_num_frames - 1, count)})

    frames, known = load_video(path, evenly)
    told = ("total_num_frames", "fps", "duration", "frames_indices")
    return Video(frames, {name: getattr(known, name) for name in told} if known.fps else None)


def sound(given: Mapping[str, Any], sampling_rate: int) -> Samples:
    """Samples (n,) of float32 at `sampling_rate`, one channel: the mean of those there are.

    `given` has a `path`, or `bytes` of a file, or an `array` (samples,) or (samples, channels) with `sampling_rate`.
    PCM WAV is read by the standard library, what else there is by soundfile. ImportError: without that.
    """
    array = given.get("array")
    if array is None:
        content = given.get("bytes") or Path(given["path"]).read_bytes()
        array, rate = _read_sound(content, str(given.get("path") or "a sound given as bytes"))
    else:
        array, rate = np.asarray(array, np.float32), int(given["sampling_rate"])
    mono = array if array.ndim == 1 else array.mean(axis=int(array.shape[0] > array.shape[1]))
    if rate == sampling_rate:
        return np.asarray(mono, np.float32)
    from scipy.signal import resample_poly  # a second of every start, otherwise

    common = math.gcd(rate, sampling_rate)
    return np.asarray(resample_poly(mono, sampling_rate // common, rate // common), np.float32)


def _read_sound(content: bytes, name: str) -> tuple[Samples, int]:
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
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: {error.error_string}") from error


def _from_pcm(frames: bytes, width: int) -> Samples:
    """Numbers of `width` bytes, little endian; those of one byte have their zero at 128."""
    raw = np.frombuffer(frames, np.uint8).reshape(-1, width)
    if width == 1:
        return np.asarray((raw[:, 0] - 128.0) / 128, np.float32)
    padded = np.zeros((len(raw), 4), np.uint8)
    padded[:, 4 - width :] = raw  # the highest bytes of an int32
    return np.asarray(padded.view("<i4")[:, 0] / 2**31, np.float32)
