"""What reaches a model of `mllm` of its pictures, sounds and videos: nothing changes or gets lost unseen."""

from __future__ import annotations

import functools
import io
import json
import re
import wave
from pathlib import Path
from typing import Any

import av
import end_to_end as c
import numpy as np
import processors
import pytest
import torch
import transformers as t
import zoo
from mllm_runs import CHOICES, MLLM, donor, evaluate, lively, omni, png, said, saved, task
from PIL import Image, ImageDraw

from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.tasks import media

pytestmark = pytest.mark.slow

TEXT_ONLY = {"doc_to_image": None, "doc_to_audio": None}
PAD = {
    zoo.IMAGE: "<|image_pad|>",
    zoo.VIDEO: "<|video_pad|>",
    zoo.V_START: "<|vision_start|>",
    zoo.V_END: "<|vision_end|>",
}
CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}"
    "{{ '<|vision_start|><|' + p['type'] + '_pad|><|vision_end|>' }}{% endif %}{% endfor %}{% endif %}</s>{% endfor %}"
)


def model(path: Path, **arguments: Any) -> MLLM:
    return MLLM(str(path), **{"dtype": "float32", "device": "cpu", **arguments})


def checkpoint(cls: Any, config: Any, processor: Any) -> Path:
    path = c.fresh(cls.__name__)
    lively(cls(config)).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def film(seed: int, frames: int, **more: Any) -> dict[str, Any]:
    return {"frames": [png(100 * seed + at) for at in range(frames)], "path": None, **more}


def wav(samples: Any) -> dict[str, Any]:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, processors.RATE, 0, "NONE", ""))
        file.writeframes((np.asarray(samples) * 30000).astype("<i2").tobytes())
    return {"bytes": data.getvalue(), "path": None}


def qwen_tokenizer() -> Any:
    before = dict(zoo.SPECIAL)
    try:
        zoo.SPECIAL.update(PAD)
        return zoo.tokenizer(image_token=PAD[zoo.IMAGE], video_token=PAD[zoo.VIDEO])
    finally:
        zoo.SPECIAL.clear()
        zoo.SPECIAL.update(before)


@functools.cache
def qwen3_vl() -> Path:
    """A model that is told in words when the frames of a video were."""
    tokenizer = qwen_tokenizer()
    tokenizer.vision_start_token, tokenizer.vision_end_token = PAD[zoo.V_START], PAD[zoo.V_END]
    tokenizer.vision_start_token_id, tokenizer.vision_end_token_id = zoo.V_START, zoo.V_END
    grid = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64 * 4}}
    made = t.Qwen3VLProcessor(
        t.Qwen2VLImageProcessor(**grid), tokenizer, t.Qwen3VLVideoProcessor(**grid), chat_template=CHAT
    )
    return checkpoint(t.Qwen3VLForConditionalGeneration, zoo.qwen3_vl(), made)


# ------------------------------------------------------------------------------------------------------ pictures


def drawn(mode: str, clear: Any, ink: Any) -> Image.Image:
    picture = Image.new(mode, (8, 8), clear)
    ImageDraw.Draw(picture).rectangle((2, 2, 5, 5), fill=ink)
    return picture


def stored(picture: Image.Image, kind: str = "PNG", **more: Any) -> dict[str, Any]:
    data = io.BytesIO()
    picture.save(data, kind, **more)
    return {"bytes": data.getvalue(), "path": None}


def transparent(kind: str) -> dict[str, Any]:
    """A black square on a transparent ground whose hidden colour is black, or nearly."""
    if kind in ("RGBA", "LA"):
        return stored(drawn(kind, (0,) * len(kind), (0,) * (len(kind) - 1) + (255,)))
    if kind == "WEBP":
        return stored(drawn("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), kind, lossless=True)
    if kind == "GIF" or kind == "P":
        palette = drawn("P", 0, 1)
        palette.putpalette([0, 0, 0, 0, 0, 0] + [0] * 762)
        return stored(palette, "GIF" if kind == "GIF" else "PNG", transparency=0)
    if kind == "L":
        return stored(drawn("L", 7, 0), transparency=7)
    if kind == "RGB":
        return stored(drawn("RGB", (1, 2, 3), (0, 0, 0)), transparency=(1, 2, 3))
    assert kind == "16 bits"
    grey = np.full((8, 8), 300, np.uint16)
    grey[2:6, 2:6] = 0
    return stored(Image.fromarray(grey), transparency=300)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "GIF", "WEBP", "L", "RGB", "16 bits"])
def test_what_is_transparent_is_white(kind: str) -> None:
    seen = np.asarray(decoding.picture(media.open_image(transparent(kind))))
    expected = np.full((8, 8, 3), 255)
    expected[2:6, 2:6] = 0
    np.testing.assert_array_equal(seen, expected)


def test_half_transparent_parts_are_mixed_with_white_and_whole_ones_are_kept() -> None:
    half = decoding.picture(media.open_image(stored(drawn("RGBA", (255, 0, 0, 128), (0, 0, 255, 255)))))
    assert (half.getpixel((0, 0)), half.getpixel((3, 3))) == ((255, 127, 127), (0, 0, 255))
    array = np.zeros((4, 4, 4), np.uint8)
    assert decoding.picture(array).getpixel((0, 0)) == (255, 255, 255)
    assert decoding.picture(drawn("RGB", (9, 8, 7), (1, 2, 3))).getpixel((3, 3)) == (1, 2, 3)


# -------------------------------------------------------------------------------------------------------- videos


def times(lm: MLLM, video: dict[str, Any]) -> list[str]:
    asked = lm.reader.read("<video>what?", {"visual": [video]}, "here")
    text = lm.tokenizer.decode(lm.reader.encode([asked], "left")["input_ids"][0])
    return re.findall(r"<([\d.]+) seconds>", text)


def listed(frames: int, **more: Any) -> dict[str, Any]:
    return {"type": "video", "frames": [processors.picture(at) for at in range(frames)], **more}


def test_times_of_frames_that_a_task_gives_reach_the_model() -> None:
    lm = model(qwen3_vl())
    assert times(lm, listed(8, fps=1)) == ["0.5", "2.5", "4.5", "6.5"]
    assert times(lm, listed(4, timestamps=[0, 1, 4, 9])) == ["0.5", "6.5"]
    assert times(lm, listed(8, fps=2, num_frames=4)) == ["0.5", "3.0"]
    assert times(model(qwen3_vl(), max_frames=4), listed(8, fps=1)) == ["1.0", "6.0"]
    assert times(model(qwen3_vl(), fps=0.5), listed(8, fps=1)) == ["1.0", "5.0"]
    assert times(model(qwen3_vl(), videos_kwargs={"num_frames": 2}), listed(8, fps=1)) == ["3.5"]


@pytest.mark.parametrize(
    ("arguments", "video", "told"),
    [
        ({"fps": 1}, {}, "fps=1 is asked for, and when its frames were is not known"),
        ({}, {"timestamps": [0, 1, 1, 2]}, "timestamps are as many rising seconds as frames"),
        ({}, {"timestamps": [0, 1, 2, 3], "fps": 1}, "without fps"),
        ({}, {"fps": 0}, "fps of a list of frames is 0"),
        ({}, {"frame_rate": 3}, "a video has no frame_rate"),
    ],
)
def test_times_that_cannot_be_followed_are_refused(arguments: dict[str, Any], video: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        times(model(qwen3_vl(), **arguments), listed(4, **video))


def test_a_number_and_a_rate_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="num_frames=2 and fps=1 exclude each other"):
        model(qwen3_vl(), fps=1, num_frames=2)
    with pytest.raises(ValueError, match="num_frames is 2, and 3 in videos_kwargs"):
        model(qwen3_vl(), num_frames=2, videos_kwargs={"num_frames": 3})


def test_a_file_is_sampled_by_its_times(tmp_path: Path) -> None:
    path = str(processors.video_file(tmp_path / "film.mp4", frames=12, fps=4))
    for asked, places in [
        ({"fps": 1}, [0, 4, 8]),
        ({"fps": 2, "max_frames": 4}, [0, 3, 6, 9]),
        ({"num_frames": 3}, [0, 6, 11]),
        ({}, list(range(12))),
    ]:
        shown = decoding.video({"path": path, **asked})
        assert shown.metadata is not None
        assert shown.metadata["frames_indices"] == places
        np.testing.assert_array_equal(shown.frames, decoding.video({"path": path}).frames[places])
    content = Path(path).read_bytes()
    np.testing.assert_array_equal(
        decoding.video({"bytes": content, "fps": 1}).frames, decoding.video({"path": path, "fps": 1}).frames
    )
    lm = model(qwen3_vl(), videos_kwargs={"do_sample_frames": True, "fps": 2})
    assert times(lm, {"type": "video", "path": path, "num_frames": 8}) == ["0.2", "1.4", "2.5"]


def test_frames_without_times_are_told_where_the_model_reads_times(caplog: pytest.LogCaptureFixture) -> None:
    without, given = film(1, 4), film(2, 4, fps=1.0)
    found = evaluate(
        model(qwen3_vl(), batch_size=2),
        task([{"prompt": "<video>a", "video": {**without, "fps": None}}, {"prompt": "<video>b", "video": given}]),
    )
    assert found["config"]["videos_without_times"] == 1
    assert "mine, document 0, ...): give `fps` or `timestamps`" in caplog.text
    assert (
        "videos_without_times"
        not in evaluate(model(saved("qwen2_vl")), task([{"prompt": "<video>a", "video": without}]))["config"]
    )


def video_llava() -> Path:
    made = donor("video_llava")
    made.patch_size, made.vision_feature_select_strategy, made.num_additional_image_tokens = 14, "default", 1
    return checkpoint(t.VideoLlavaForConditionalGeneration, zoo.video_llava(), made)


def perception_lm() -> Path:
    tokenizer = zoo.tokenizer(image_token="<image>", video_token="<video>")
    made = t.PerceptionLMProcessor(
        video_processor=t.PerceptionLMVideoProcessor(size={"height": 28, "width": 28}),
        image_processor=t.PerceptionLMImageProcessor(tile_size=28, max_num_tiles=4),
        tokenizer=tokenizer,
        patch_size=14,
        pooling_ratio=1,
    )
    return checkpoint(t.PerceptionLMForConditionalGeneration, zoo.perception_lm(), made)


def test_videos_of_unlike_length_in_one_batch() -> None:
    docs = [{"prompt": f"<video>what{'?' * n}", "video": film(n, frames)} for n, frames in enumerate((8, 5, 8, 5, 3))]
    path = video_llava()
    one, five = (said(model(path, batch_size=size), docs, **CHOICES) for size in (1, 5))
    np.testing.assert_allclose(one, five, atol=1e-4)
    assert len(np.unique(np.round(one, 3))) == 15
    lm = model(path, batch_size=5)
    sizes: list[int] = []
    generate = lm._generate
    lm._generate = lambda asked, *rest: (sizes.append(len(asked)), generate(asked, *rest))[1]
    said(lm, docs)
    assert sorted(sizes) == [1, 2, 2]  # not all one by one


def test_pictures_of_unlike_tiles_in_one_batch() -> None:
    sizes = [(28, 28), (56, 28), (56, 56), (28, 84)]
    docs = [{"prompt": "<image>what?", "image": png(n, width=w, height=h)} for n, (w, h) in enumerate(sizes)]
    path = perception_lm()
    assert said(model(path), docs) == said(model(path, batch_size=4), docs)


# -------------------------------------------------------------------------------------------------------- sounds


TONES = [processors.tone(seed, 1.0) for seed in (1, 3, 7)]
LONG = [TONES[0], np.concatenate(TONES[:2]), np.concatenate([TONES[0], TONES[2], TONES[1], TONES[2]])]
HEARD = [{"prompt": "<audio>what?", "audio": wav(each)} for each in LONG]


@pytest.mark.parametrize("path", [functools.partial(saved, "qwen2_audio"), omni], ids=["qwen2_audio", "omni"])
def test_a_sound_that_is_not_heard_whole_is_an_error(path: Any) -> None:
    with pytest.raises(ValueError, match=r"hears 1\.0 s of audio, and 2 documents have longer audio") as caught:
        said(model(path()), HEARD)
    assert "mine, document 1: 2.0 s" in str(caught.value)
    assert "mine, document 2: 4.0 s" in str(caught.value)
    assert len(said(model(path()), HEARD[:1])) == 1


def test_long_sounds_are_cut_or_given_in_pieces_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(model(saved("qwen2_audio"), long_audio="cut"), task(HEARD, **CHOICES))
    scores = [[value[0][0] for value in sample["resps"]] for sample in found["samples"]["mine"]]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert found["config"]["long_audio"] == {"policy": "cut", "documents": 2, "seconds_heard": 1.0}
    assert "The rest is cut off" in caplog.text
    by_hand = [{"prompt": "<audio><audio>what?", "audios": [wav(TONES[0]), wav(TONES[1])]}]
    config = {**CHOICES, "doc_to_audio": lambda doc: [{"bytes": each["bytes"]} for each in doc["audios"]]}
    lm = model(saved("qwen2_audio"), long_audio="chunk", batch_size=3)
    pieces = said(lm, HEARD, **CHOICES)
    np.testing.assert_allclose(pieces[1], said(model(saved("qwen2_audio")), by_hand, **config)[0], atol=1e-4)
    assert np.abs(np.array(pieces[1]) - pieces[0]).max() > 1e-2
    np.testing.assert_allclose(said(lm, HEARD, **CHOICES)[2], pieces[2], atol=1e-4)
    with pytest.raises(ValueError, match="long_audio is 'whole'; it must be one of error, cut, chunk"):
        model(saved("qwen2_audio"), long_audio="whole")


def test_a_processor_that_cuts_sounds_into_windows_itself_hears_all() -> None:
    path = checkpoint(t.AudioFlamingo3ForConditionalGeneration, zoo.audioflamingo3(), donor("audioflamingo3"))
    scores = np.array(said(model(path), HEARD, **CHOICES))
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_the_sound_of_a_video_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        samples = np.sin(np.arange(16384) / 8).astype(np.float32)
        for at in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    heard = decoding.sound({"path": str(path)}, 16000)
    assert abs(len(heard) - 16384) <= 2048
    spectrum = np.abs(np.fft.rfft(heard[4096:12288]))
    assert abs(np.argmax(spectrum) * 16000 / 8192 - 16000 / 8 / 2 / np.pi) < 4
    assert abs(decoding.seconds({"path": str(path)}) - 1.024) < 0.15


# --------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("words", ["Is it <video> or <embed>?", "<audio controls> and <audio>", "Write <image> twice."])
def test_a_task_without_media_keeps_its_words(words: str) -> None:
    lm = model(saved("qwen2_vl"))
    for chat in (False, True):
        found = evaluate(lm, task([{"prompt": words}], "words", **TEXT_ONLY), apply_chat_template=chat)
        prompt = found["samples"]["words"][0]["arguments"][0][0]
        assert prompt == (f"u:{words}</s>a:" if chat else words)
        as_hf = lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": words}], chat_template=lm.reader.renderer.template, add_generation_prompt=True
        )
        if chat:
            assert lm.tokenizer(prompt, add_special_tokens=False)["input_ids"] == as_hf["input_ids"]


def test_a_backslash_makes_words_of_marks() -> None:
    lm = model(qwen3_vl())
    shown = {"visual": [processors.picture(1)]}
    read = lm.reader.read(r"<image>Is it \<video> or \<image2>?", shown, "here")
    assert read.text == "user: <|vision_start|><|image_pad|><|vision_end|>Is it <video> or <image2>?</s>"
    assert len(read.media["image"]) == 1
    with pytest.raises(
        ValueError, match=r"1 x <video> in the prompt, but 0 media: .* write \\<video> with a backslash"
    ):
        lm.reader.read("<image>Is it <video>?", shown, "here")
    with pytest.raises(ValueError, match="'<image>', which are this model's own placeholder for image"):
        model(saved("llava")).reader.read(r"<image>Is it \<image>?", shown, "here")
    chat = lm.apply_chat_template([{"role": "user", "content": r"<image>Is it \<video>?"}])
    assert lm.reader.read(chat, shown, "here").text.endswith("<|vision_end|>Is it <video>?</s>")


# ------------------------------------------------------------------------------------------------ old processors


@pytest.mark.parametrize(
    "lacking", [("patch_size", "vision_feature_select_strategy"), ("num_additional_image_tokens",)]
)
def test_what_an_old_processor_lacks_comes_from_the_model(lacking: tuple[str, ...]) -> None:
    docs = [{"prompt": "<image>what?", "image": png(1)}]
    path = c.altered(saved("llava"))
    file = path / "processor_config.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in whole.items() if key not in lacking}))
    found = evaluate(model(path), task(docs))
    assert [found["samples"]["mine"][0]["resps"][0][0]] == said(model(saved("llava")), docs)
    assert found["config"]["processor_completed"] == {key: whole[key] for key in lacking}


def test_an_omni_model_reads_a_prompt_at_once() -> None:
    """Its generation config may ask for a prefill in chunks, which media do not stand."""
    docs = [{"prompt": "<image> what is it all about?", "image": png(1)}, {"prompt": "some words"}]
    lm = model(omni())
    whole = said(lm, docs)
    lm.model.generation_config.prefill_chunk_size = 4
    assert said(lm, docs) == whole
    assert lm.model.generation_config.prefill_chunk_size == 4
    assert torch.is_inference_mode_enabled() is False
