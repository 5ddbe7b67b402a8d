"""The models of this example: a small text-only Llama, and three multimodal models of transformers around it.

    image   LlavaForConditionalGeneration, with the CLIP tower of the easy-VQA example        16 tokens per image
    audio   Qwen2AudioForConditionalGeneration, with a Llama as its language model            12 tokens per second
    video   VideoLlavaForConditionalGeneration                                                 20 tokens per video

They share a word tokenizer, to which each adds one placeholder token of its own.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t

from examples.common.models import CHAT_TEMPLATE, clip_config, llama_config, special_ids
from examples.omni import media
from examples.omni.facts import NAMES, Question, in_words

EASY_VQA = Path(__file__).resolve().parents[1] / "easy_vqa" / "models" / "base"
TOKENS = {"image": ("<image>",), "audio": ("<audio>",), "video": ("<image>", "<video>")}  # tokens that each donor adds
PATCH, HOP, MELS = 16, 320, 32
ARGUMENT = {"image": "images", "audio": "audio", "video": "videos"}


@dataclass(frozen=True)
class Size:
    """Widths and depths; attention heads are 32 wide in the language model and in the towers."""

    width: int = 128
    layers: int = 3
    mlp: int = 320
    tower_width: int = 64
    tower_layers: int = 2


def make_llm(tokenizer: Any, size: Size) -> Any:
    """A randomly initialised text LLM, in float32; the caller seeds torch."""
    return t.LlamaForCausalLM(llama_config(tokenizer, size.width, size.layers, size.mlp))


def make_processor(modality: str, tokenizer: Any) -> Any:
    """The processor of the donor's family, with the tokenizer and one more token."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(list(TOKENS[modality]), special_tokens=True)
    common = {"tokenizer": tokenizer, "chat_template": CHAT_TEMPLATE}
    if modality == "image":
        easy = t.AutoProcessor.from_pretrained(EASY_VQA)
        return t.LlavaProcessor(
            image_processor=easy.image_processor,
            patch_size=easy.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # CLIP's class token, which the strategy drops again
            **common,
        )
    if modality == "audio":
        rate = media.RATE
        extractor = t.WhisperFeatureExtractor(MELS, rate, hop_length=HOP, chunk_length=1, n_fft=512)
        return t.Qwen2AudioProcessor(feature_extractor=extractor, audio_token="<audio>", **common)
    side = {"height": media.SIDE, "width": media.SIDE}
    shown = {"size": side, "crop_size": side, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return t.VideoLlavaProcessor(
        image_processor=t.VideoLlavaImageProcessor(**shown),
        video_processor=t.VideoLlavaVideoProcessor(**shown),
        patch_size=PATCH,
        num_additional_image_tokens=1,  # CLIP's class token, which videos keep
        **common,
    )


def make_donor(modality: str, processor: Any, llm: Any, size: Size) -> Any:
    """The donor with the text LLM as its language model, and an untrained tower (the image donor's is trained)."""
    token = processor.tokenizer.convert_tokens_to_ids(f"<{modality}>")
    text = copy.deepcopy(llm.config)
    text.vocab_size, text._name_or_path = len(processor.tokenizer), ""
    ids = special_ids(processor.tokenizer)
    donor: Any
    if modality == "image":
        easy = t.LlavaForConditionalGeneration.from_pretrained(EASY_VQA, dtype=torch.float32)
        config = copy.deepcopy(easy.config)
        config.text_config, config.image_token_index = text, token
        donor = t.LlavaForConditionalGeneration(config)
        donor.model.vision_tower.load_state_dict(easy.model.vision_tower.state_dict())
    elif modality == "audio":
        encoder = t.Qwen2AudioEncoderConfig(
            num_mel_bins=MELS,
            encoder_layers=size.tower_layers,
            encoder_attention_heads=size.tower_width // 32,
            encoder_ffn_dim=2 * size.tower_width,
            d_model=size.tower_width,
            max_source_positions=media.RATE // HOP // 2,
        )
        donor = t.Qwen2AudioForConditionalGeneration(
            t.Qwen2AudioConfig(audio_config=encoder, text_config=text, audio_token_index=token, **ids)
        )
    else:
        donor = t.VideoLlavaForConditionalGeneration(_video_config(text, processor, size, ids))
    _take_over(donor, llm)
    return donor


def _video_config(text: Any, processor: Any, size: Size, ids: dict[str, int]) -> Any:
    per_image = (media.SIDE // PATCH) ** 2
    return t.VideoLlavaConfig(
        vision_config=clip_config(size.tower_width, size.tower_layers, media.SIDE, PATCH),
        text_config=text,
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        vision_feature_layer=-1,
        image_seq_length=per_image,
        video_seq_length=media.FRAMES * (per_image + 1),
        **ids,
    )


def _take_over(donor: Any, llm: Any) -> None:
    """Copy the text LLM's weights; the rows of new tokens get the mean of the other rows."""
    new = donor.config.text_config.vocab_size - llm.config.vocab_size
    tensors = dict(llm.model.state_dict())
    for target, source in ((donor.model.language_model, tensors), (donor.lm_head, llm.lm_head.state_dict())):
        rows = {n: w for n, w in source.items() if n in ("embed_tokens.weight", "weight")}
        grown = {n: torch.cat([w, *[w.mean(0, keepdim=True)] * new]) for n, w in rows.items()}
        target.load_state_dict({**source, **grown})


def prompt(processor: Any, question: Question, takes: Sequence[str], rng: random.Random | None = None) -> str:
    """The question in the chat format, after a placeholder for each of its media that the model takes.

    Other media are left out; with `rng` they are told in words.
    """
    content: list[dict[str, str]] = []
    for medium in question.media:
        if medium.modality in takes:
            content += [{"type": "text", "text": f"{NAMES[medium.modality]}:"}, {"type": medium.modality}]
        elif rng is not None:
            content.append({"type": "text", "text": f"{NAMES[medium.modality]}: {in_words(medium, rng)} "})
    content.append({"type": "text", "text": question.text})
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text
