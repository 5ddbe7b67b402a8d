"""Processors as small as the models of the zoo, an omni checkpoint with its processor, and media for them."""

from __future__ import annotations

import functools
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers as t
import zoo
from end_to_end import altered, checkpoint
from PIL import Image

from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.export import copy_code
from mergekit_mm.omni.modeling import OmniForConditionalGeneration
from mergekit_mm.omni.processing import OmniProcessor

RATE = 12000  # a second of it is as long as the audio towers of the zoo hear
PLACEHOLDER = {"image": "<omni_image>", "video": "<omni_video>", "audio": "<omni_audio>"}
CHAT = (
    "{% for m in messages %}{{ m['role'][0] + ':' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}{{ '<v><' + p['type'] + '></v>' }}"
    "{% endif %}{% endfor %}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
AUDIO_CHAT = CHAT.replace("<v>", "Audio 1: <a>").replace("</v>", "</a>\\n")


def picture(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def clip(seed: int, frames: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, 56, 56, 3), dtype=np.uint8)


def tone(seed: int, seconds: float = 0.7) -> np.ndarray:
    times = np.arange(int(RATE * seconds)) / RATE
    return np.sin(2 * np.pi * (200 + 100 * seed) * times).astype(np.float32)


MEDIUM = {"image": picture, "video": clip, "audio": tone}
SQUARE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def ear() -> Any:
    return t.WhisperFeatureExtractor(feature_size=16, sampling_rate=RATE, hop_length=100, chunk_length=1)


@functools.cache
def donor(family: str) -> Any:
    """The processor of a family of the zoo, as small as its model."""
    tokenizer = zoo.tokenizer()
    if family == "llava":
        return t.LlavaProcessor(t.CLIPImageProcessor(**SQUARE), tokenizer, 14, "default", num_additional_image_tokens=1)
    if family == "video_llava":
        return t.VideoLlavaProcessor(
            t.VideoLlavaImageProcessor(**SQUARE), t.VideoLlavaVideoProcessor(**SQUARE), tokenizer
        )
    if family == "llava_onevision":
        images = t.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, **zoo.GRID)
        videos = t.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28})
        return t.LlavaOnevisionProcessor(images, tokenizer, videos, num_image_tokens=4)
    if family == "qwen2_vl":
        tokenizer = zoo.tokenizer(image_token="<image>", video_token="<video>")
        grid = {"patch_size": 14, "merge_size": 2, "min_pixels": 28 * 28, "max_pixels": 56 * 56 * 4}
        images, videos = t.Qwen2VLImageProcessor(**grid), t.Qwen2VLVideoProcessor(**grid)
        return t.Qwen2VLProcessor(images, tokenizer, videos, chat_template=CHAT)
    if family.startswith("qwen2_audio"):
        return t.Qwen2AudioProcessor(ear(), tokenizer, chat_template=AUDIO_CHAT, audio_token="<audio>")
    assert family == "audioflamingo3"
    return t.AudioFlamingo3Processor(ear(), tokenizer, audio_token="<audio>")


def omni_tokenizer() -> Any:
    tokenizer = zoo.tokenizer()
    tokenizer.add_tokens(list(PLACEHOLDER.values()), special_tokens=True)
    return tokenizer


def omni(**owners: str) -> OmniProcessor:
    """A processor from modality -> family; the first is the host's."""
    names = dict.fromkeys(owners.values())
    owner = {family: "host" if i == 0 else family for i, family in enumerate(names)}
    modalities = {m: {"owner": owner[family], "token": PLACEHOLDER[m]} for m, family in owners.items()}
    return OmniProcessor(omni_tokenizer(), {owner[family]: donor(family) for family in names}, modalities)


def omni_checkpoint(path: Path) -> tuple[Any, OmniProcessor, Any]:
    """An omni checkpoint as a merge writes it: llava with the ears and language model of a qwen2_audio."""
    host, guest = (
        t.LlavaForConditionalGeneration(zoo.llava()),
        t.Qwen2AudioForConditionalGeneration(zoo.qwen2_audio_llama()),
    )
    owners = {"image": "host", "audio": "ear"}
    processor = OmniProcessor(
        omni_tokenizer(),
        {"host": donor("llava"), "ear": donor("qwen2_audio_llama")},
        {modality: {"owner": owner, "token": PLACEHOLDER[modality]} for modality, owner in owners.items()},
    )
    ids = {modality: processor.tokenizer.convert_tokens_to_ids(PLACEHOLDER[modality]) for modality in owners}
    host.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    config = OmniConfig(
        host=host.config.to_dict(),
        guests={"ear": guest.config.to_dict()},
        modalities={modality: {"owner": owner, "token_id": ids[modality]} for modality, owner in owners.items()},
    )
    model = OmniForConditionalGeneration(config).eval()
    model.load_state_dict(host.state_dict(), strict=False)
    towers = {
        name: tensor for name, tensor in guest.model.state_dict().items() if not name.startswith("language_model")
    }
    model.guests["ear"].load_state_dict(towers)
    language = guest.model.get_decoder().state_dict()
    with torch.no_grad():
        model.get_input_embeddings().weight[: zoo.VOCAB] = language.pop("embed_tokens.weight")
        model.lm_head.weight[: zoo.VOCAB] = guest.lm_head.weight
    model.get_decoder().load_state_dict(language, strict=False)
    config.auto_map = processor.auto_map = copy_code(path)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return model, processor, guest.eval()


def with_processor(family: str) -> Path:
    """The family's base checkpoint with its processor in the place of the zoo's markers."""
    path = altered(checkpoint(family))
    markers = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "vocab.json")
    for name in (*markers, "chat_template.json", "chat_template.jinja"):
        (path / name).unlink()
    donor(family).save_pretrained(path)
    return path


def video_file(path: Path, frames: int = 12, fps: int = 4) -> Path:
    """Whole seconds of a growing square, encoded lossily."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            picture = np.zeros((56, 56, 3), np.uint8)
            picture[: 4 * i, : 4 * i] = 20 * i
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def sound_file(path: Path, rate: int = RATE, channels: int = 1) -> Path:
    """0.7 seconds of a tone of 300 Hz in 16 bits."""
    samples = np.sin(2 * np.pi * 300 * np.arange(int(0.7 * rate)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes((samples * 30000).astype(np.int16).repeat(channels).tobytes())
    return path
