"""Audio and video files are decoded by one loader: what a model hears and sees is the same in evaluation and in use."""

from __future__ import annotations

import base64
import io
import math
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from processors import PLACEHOLDER, RATE, omni, sound_file, video_file

from mergekit_mm.evaluation.model import decoding
from mergekit_mm.omni.audio import audio_seconds, load_audio, resample

FORMATS = ["wav", "flac", "ogg", "mp3", "mp4"]
SOURCE_RATE = 16000


def stereo(seconds: float = 1.0) -> np.ndarray:
    """Two channels (n, 2), a tone and a quieter one of another pitch."""
    times = np.arange(int(SOURCE_RATE * seconds)) / SOURCE_RATE
    return np.stack([0.4 * np.sin(2 * np.pi * 300 * times), 0.1 * np.sin(2 * np.pi * 700 * times)], 1)


def written(path: Path, samples: np.ndarray) -> Path:
    """An audio file (n, channels) of the format that its name says; an mp4 has AAC in it, as videos do."""
    if path.suffix != ".mp4":
        soundfile.write(path, samples, SOURCE_RATE)
        return path
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=SOURCE_RATE, layout="stereo")
        for at in range(0, len(samples), 1024):
            part = np.ascontiguousarray(samples[at : at + 1024].T, np.float32)
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.rate, frame.pts = SOURCE_RATE, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_evaluation_and_use_hear_the_same_samples(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a.{kind}", stereo())
    processor, text = omni(audio="qwen2_audio"), PLACEHOLDER["audio"]
    heard = decoding.sound({"path": str(path)}, RATE)
    in_use = processor(text=text, audio=path)["audio__input_features"]
    assert torch.equal(in_use, processor(text=text, audio=heard)["audio__input_features"])
    np.testing.assert_array_equal(decoding.sound({"bytes": path.read_bytes()}, RATE), heard)
    assert decoding.seconds({"path": str(path)}) == pytest.approx(1.0, abs=0.15)


def test_evaluation_and_use_see_the_same_frames(tmp_path: Path) -> None:
    path, processor, text = video_file(tmp_path / "a.mp4"), omni(video="video_llava"), PLACEHOLDER["video"]
    shown = decoding.video({"path": str(path), "num_frames": 4})
    assert shown.metadata is not None
    in_use = processor(text=text, videos=path)["video__pixel_values_videos"][:, shown.metadata["frames_indices"]]
    assert torch.equal(in_use, processor(text=text, videos=shown.frames)["video__pixel_values_videos"])


@pytest.mark.parametrize("kind", FORMATS)
def test_one_channel_is_the_mean_of_the_channels(kind: str, tmp_path: Path) -> None:
    """Neither louder nor quieter: both tones have half their amplitude, whichever library decodes the file."""
    heard = load_audio(str(written(tmp_path / f"a.{kind}", stereo())), SOURCE_RATE)
    spectrum = np.abs(np.fft.rfft(heard[4000:12000])) / 4000
    assert spectrum[300 // 2] == pytest.approx(0.2, rel=0.05)
    assert spectrum[700 // 2] == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(44100, 16000), (16000, 44100), (8000, 12000), (48000, 16000), (22050, 11999), (7, 3)]
)
def test_resampling_is_scipys(rate: int, wanted: int) -> None:
    common = math.gcd(rate, wanted)
    for count in (0, 1, 77, 40001):  # nothing, less than the filter's length, and more than a block of the result
        samples = np.random.default_rng(count).standard_normal(count).astype(np.float32)
        made = resample(samples, rate, wanted)
        expected = np.zeros(0) if not count else scipy.signal.resample_poly(samples, wanted // common, rate // common)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, atol=2e-6)


def test_plain_wav_needs_no_optional_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flac = sound_file(tmp_path / "a.wav", rate=44100, channels=2), written(tmp_path / "a.flac", stereo())
    expected = load_audio(str(path), RATE), load_audio(str(flac), RATE)
    for missing in ("soundfile", "scipy.signal", "torchcodec"):
        monkeypatch.setitem(sys.modules, missing, None)
    np.testing.assert_allclose(load_audio(str(flac), RATE), expected[1], atol=1e-6)  # PyAV reads it as well
    monkeypatch.setitem(sys.modules, "av", None)
    np.testing.assert_array_equal(load_audio(str(path), RATE), expected[0])
    assert audio_seconds(str(path), "it") == pytest.approx(0.7, abs=1e-3)
    with pytest.raises(ImportError, match=r"Nothing here can read .*a\.flac: pip install av, or soundfile"):
        load_audio(str(flac), RATE)


def test_audio_from_open_files_and_data_urls(tmp_path: Path) -> None:
    content = sound_file(tmp_path / "a.wav").read_bytes()
    expected = load_audio(str(tmp_path / "a.wav"), RATE)
    url = "data:audio/wav;base64," + base64.b64encode(content).decode()
    np.testing.assert_array_equal(load_audio(url, RATE), expected)
    np.testing.assert_array_equal(load_audio(io.BytesIO(content), RATE, "it"), expected)


def test_files_without_audio_are_refused(tmp_path: Path) -> None:
    silent = video_file(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4 has no audio in it"):
        load_audio(str(silent), RATE)
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="it is no audio or video file that can be read"):
        load_audio(io.BytesIO(b"nothing"), RATE, "it")
    with pytest.raises(FileNotFoundError):
        load_audio(str(tmp_path / "none.wav"), RATE)
