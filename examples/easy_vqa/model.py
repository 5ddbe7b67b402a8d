"""The small LLaVA of this example: a CLIP tower and a Llama decoder, its word tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from examples.common.models import CHAT_TEMPLATE, clip_config, llama_config, make_tokenizer, special_ids
from examples.easy_vqa.data import Question

IMAGE_SIZE = 64


@dataclass(frozen=True)
class Size:
    """Widths and depths of the two halves; attention heads are 32 wide."""

    patch: int = 16
    vision_width: int = 96
    vision_layers: int = 3
    width: int = 128
    layers: int = 3
    mlp: int = 320


def make_processor(rows: Sequence[Question], size: Size) -> LlavaProcessor:
    """A LLaVA processor whose tokenizer knows exactly the words of `rows`; any other word becomes `<unk>`."""
    tokenizer = make_tokenizer([text for row in rows for text in (row.text, row.answer)], ["image"])
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy drops again
        chat_template=CHAT_TEMPLATE,
    )


def make_model(processor: LlavaProcessor, size: Size) -> LlavaForConditionalGeneration:
    """A randomly initialised model that fits the processor, in float32; the caller seeds torch."""
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=clip_config(size.vision_width, size.vision_layers, IMAGE_SIZE, size.patch),
        text_config=llama_config(tokenizer, size.width, size.layers, size.mlp),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // size.patch) ** 2,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )
    return LlavaForConditionalGeneration(config)


def prompt_ids(processor: LlavaProcessor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The token ids of each distinct text as a user asks it about one image, image placeholders expanded."""
    content = [[{"type": "image"}, {"type": "text", "text": text}] for text in texts]
    chats = [[{"role": "user", "content": parts}] for parts in content]
    prompts = processor.apply_chat_template(chats, add_generation_prompt=True)
    side = IMAGE_SIZE // processor.patch_size
    blank = torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    encoded = processor(images=[blank] * len(prompts), text=prompts)["input_ids"]
    rows = {text: torch.tensor(ids) for text, ids in zip(texts, encoded, strict=True)}
    assert all((ids == processor.image_token_id).sum() == side * side for ids in rows.values())
    return rows
