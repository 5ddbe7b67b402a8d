"""The one loader of audio: what a model hears is the same samples when it is evaluated and when it is used.

The decoders are tried in a fixed order: the standard library for PCM WAV, soundfile for other audio files, PyAV for
what soundfile does not know, such as the audio of a video, and transformers' own loader by torchcodec where PyAV is
missing. Only the first is always there. Channels are averaged and resampled here, because the libraries that can do so
are optional, and each makes other samples of the same file.
"""

from __future__ import annotations

import io
import math
import urllib.request
import wave
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from transformers.audio_utils import load_audio as load_by_transformers

from .video import open_container

ZERO_CROSSINGS = 10  # of the resampling filter's sinc, on each side
KAISER_BETA = 5.0  # of the window over that sinc
BLOCK = 1 << 14  # output samples that are computed at once, which bounds the memory

# -------------------------------------------------------------------------------------------------------- loading


def load_audio(source: Any, rate: int, name: str | None = None) -> Any:
    """The samples (n,) of a file in float32, as one channel at `rate` Hz. Of a video, its audio.

    source: a path, a URL (http, https, data), or an open binary file, which `name` stands for in messages.

    Raises ImportError when nothing that is installed can read it, ValueError for a file without audio.
    """
    samples, own_rate = _decode(source, rate, name or str(source))
    return resample(samples.mean(axis=1), own_rate, rate)


def audio_seconds(source: Any, name: str) -> float:
    """How long the audio of a path or an open file lasts, as its header says. The errors are those of `load_audio`."""
    try:
        with wave.open(_rewound(source)) as file:
            return file.getnframes() / file.getframerate()
    except (wave.Error, EOFError):  # no PCM WAV
        pass
    if find_spec("soundfile"):
        import soundfile

        try:
            return float(soundfile.info(_rewound(source)).duration)
        except soundfile.LibsndfileError:  # a format that it does not know
            pass
    return _seconds_by_pyav(_rewound(source), name)


def _decode(source: Any, rate: int, name: str) -> tuple[Any, int]:
    """The samples (n, channels) in float32 and their rate, which is not always the wanted `rate`."""
    file = source
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        with urllib.request.urlopen(source) as answer:
            file = io.BytesIO(answer.read())
    try:
        with wave.open(_rewound(file)) as pcm:
            width, channels, own_rate = pcm.getsampwidth(), pcm.getnchannels(), pcm.getframerate()
            return _from_pcm(pcm.readframes(pcm.getnframes()), width).reshape(-1, channels), own_rate
    except (wave.Error, EOFError):  # no PCM WAV
        pass
    if find_spec("soundfile"):
        import soundfile

        try:
            samples, own_rate = soundfile.read(_rewound(file), dtype="float32", always_2d=True)
            return samples, int(own_rate)
        except soundfile.LibsndfileError:  # a format that it does not know
            pass
    if not find_spec("av") and find_spec("torchcodec") and isinstance(source, str):
        return load_by_transformers(source, sampling_rate=rate)[:, None], rate
    return _by_pyav(_rewound(file), name)


def _rewound(source: Any) -> Any:
    """An open file at its start; a path as it is."""
    if not isinstance(source, str):
        source.seek(0)
    return source


def _from_pcm(frames: bytes, width: int) -> Any:
    """Samples in [-1, 1) from integers of `width` bytes, little endian; integers of one byte have their zero at 128."""
    raw = np.frombuffer(frames, np.uint8).reshape(-1, width)
    if width == 1:
        return np.asarray((raw[:, 0] - 128.0) / 128, np.float32)
    padded = np.zeros((len(raw), 4), np.uint8)
    padded[:, 4 - width :] = raw  # the highest bytes of an int32
    return np.asarray(padded.view("<i4")[:, 0] / 2**31, np.float32)


def _by_pyav(source: Any, name: str) -> tuple[Any, int]:
    with open_container(source, name, "soundfile") as file:
        from av import AudioResampler

        stream = _audio_stream(file, name)
        to_floats = AudioResampler(format="fltp")  # changes the type of the samples and nothing else
        parts = [made.to_ndarray().T for frame in file.decode(stream) for made in to_floats.resample(frame)]
        if not parts:
            raise ValueError(f"{name} has no audio in it.")
        return np.concatenate(parts), int(stream.rate)


def _seconds_by_pyav(source: Any, name: str) -> float:
    with open_container(source, name, "soundfile") as file:
        stream = _audio_stream(file, name)
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return float(file.duration or 0) / 1e6  # a container's duration is in microseconds


def _audio_stream(file: Any, name: str) -> Any:
    if not file.streams.audio:
        raise ValueError(f"{name} has no audio in it.")
    return file.streams.audio[0]


# ----------------------------------------------------------------------------------------------------- resampling


def resample(samples: Any, rate: int, wanted: int) -> Any:
    """Samples (n,) at `rate` Hz as samples (ceil(n * wanted / rate),) at `wanted` Hz, both float32.

    A polyphase filter: a sinc, which cuts off at half of the lower rate, in a Kaiser window. The result is that of
    `scipy.signal.resample_poly` with its defaults, which is not called because omni checkpoints run without scipy.
    """
    if rate == wanted:
        return np.asarray(samples, np.float32)
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    half = ZERO_CROSSINGS * max(up, down)  # the filter's taps on each side of its middle, at `up` times the rate
    window = np.sinc(np.arange(-half, half + 1) / max(up, down)) * np.kaiser(2 * half + 1, KAISER_BETA)
    window *= up / window.sum()
    # With up - 1 zeros after each sample, the filter is centred at index n * down for output n. Only every up-th of its
    # taps meets a sample and not a zero: those from tap `phase` on, and the first of them meets the sample `latest`.
    width = -(-len(window) // up)
    phases = np.pad(window, (0, width * up - len(window))).reshape(width, up).T[:, ::-1]  # (up, width)
    count = -(-len(samples) * up // down)
    places = np.arange(count) * down + half
    latest, phase = places // up, places % up
    padded = np.pad(np.asarray(samples, np.float64), (width - 1, max(int(latest.max(initial=0)) + 1 - len(samples), 0)))
    views = sliding_window_view(padded, width)
    made = np.empty(count, np.float32)
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        made[block] = np.einsum("nw,nw->n", views[latest[block]], phases[phase[block]])
    return made
