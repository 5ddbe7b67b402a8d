"""The small LLaVA of this example: a CLIP tower and a Llama decoder, its word tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from examples.common import llava
from examples.common.models import clip_config, llama_config, make_tokenizer
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
    return llava.make_processor(tokenizer, IMAGE_SIZE, size.patch)


def make_model(processor: LlavaProcessor, size: Size) -> LlavaForConditionalGeneration:
    """A randomly initialised model that fits the processor, in float32; the caller seeds torch."""
    vision = clip_config(size.vision_width, size.vision_layers, IMAGE_SIZE, size.patch)
    text = llama_config(processor.tokenizer, size.width, size.layers, size.mlp)
    return llava.make_model(processor.tokenizer, vision, text)


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
