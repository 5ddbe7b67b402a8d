"""A small LLaVA: a CLIP tower and a Llama decoder, and its processor."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from examples.common.models import CHAT_TEMPLATE, special_ids


def make_processor(tokenizer: Any, side: int, patch: int) -> LlavaProcessor:
    """The processor for square images of `side` pixels in patches of `patch`; the tokenizer has `<image>`."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy drops again
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: Any, vision: CLIPVisionConfig, text: LlamaConfig) -> LlavaForConditionalGeneration:
    """A randomly initialised model, in float32; the caller seeds torch."""
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )
    return LlavaForConditionalGeneration(config)
