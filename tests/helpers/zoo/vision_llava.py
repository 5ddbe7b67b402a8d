"""LLaVA and its relatives: a tower and a projector in front of a language model of another family."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.configs import GRID, IMAGE, IMG_VID, VIDEO, clip, pixtral, siglip, text, two_layers
from zoo.families import family
from zoo.inputs import image, noise, prompt


@family("LlavaForConditionalGeneration", "plain hub memory", media=lambda: image(4))
def llava() -> Any:
    return t.LlavaConfig(text_config=text("llama"), vision_config=clip(), image_token_index=IMAGE, image_seq_length=4)


@family("LlavaForConditionalGeneration", "plain hub memory", media=lambda: image(4))
def llava_qwen2() -> Any:
    return t.LlavaConfig(
        text_config=text("qwen2"),
        vision_config=siglip(),
        image_token_index=IMAGE,
        image_seq_length=4,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


@family(
    "LlavaForConditionalGeneration",
    "plain memory",
    media=lambda: image(4, image_sizes=torch.tensor([[28, 28]])),
)
def llava_pixtral() -> Any:
    return t.LlavaConfig(
        text_config=text("mistral", head_dim=16, sliding_window=None),
        vision_config=pixtral(),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


@family(
    "LlavaNextForConditionalGeneration",
    "plain hub memory",
    media=lambda: image(10, 1, 2, 3, 28, 28, image_sizes=torch.tensor([[28, 28]])),
)
def llava_next() -> Any:
    return t.LlavaNextConfig(text_config=text("llama"), vision_config=clip(), image_token_index=IMAGE, **GRID)


@family(
    "LlavaOnevisionForConditionalGeneration",
    "plain hub memory",
    media=lambda: image(10, 1, 2, 3, 28, 28, image_sizes=torch.tensor([[28, 28]])),
)
def llava_onevision() -> Any:
    return t.LlavaOnevisionConfig(
        text_config=text("qwen2"),
        vision_config=siglip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **GRID,
    )


@family(
    "VideoLlavaForConditionalGeneration",
    "plain hub memory",
    media=lambda: {**prompt(*[VIDEO] * 40), "pixel_values_videos": noise(1, 8, 3, 28, 28)},
)
def video_llava() -> Any:
    return t.VideoLlavaConfig(
        text_config=text("llama"),
        vision_config=clip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=4,
        video_seq_length=40,
    )


@family(
    "LlavaNextVideoForConditionalGeneration",
    "plain hub memory",
    media=lambda: {**prompt(*[VIDEO] * 2), "pixel_values_videos": noise(1, 2, 3, 28, 28)},
)
def llava_next_video() -> Any:
    return t.LlavaNextVideoConfig(
        text_config=text("llama"),
        vision_config=clip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **GRID,
    )


@family("VipLlavaForConditionalGeneration", "plain hub memory", media=lambda: image(4))
def vipllava() -> Any:
    return t.VipLlavaConfig(
        text_config=text("llama"), vision_config=clip(), image_token_index=IMAGE, vision_feature_layers=[-1, -2]
    )


@family(
    "Mistral3ForConditionalGeneration",
    "plain memory",
    media=lambda: image(4, 1, 3, 56, 56, image_sizes=torch.tensor([[56, 56]])),
)
def mistral3() -> Any:
    return t.Mistral3Config(
        text_config=text("mistral", head_dim=16, sliding_window=None),
        vision_config=pixtral(image_size=56),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )


@family("VideoLlama3ForConditionalGeneration")
def video_llama_3() -> Any:
    return t.VideoLlama3Config(
        text_config=text("qwen2"),
        vision_config=two_layers(patch_size=14),
        **IMG_VID,
    )
