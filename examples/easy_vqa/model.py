"""The small LLaVA of this example: a CLIP tower and a Llama decoder, its word tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from vqa_data import Question

IMAGE_SIZE = 64
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{{ '</s>' if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt else '' }}"
)


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
    splitter = pre_tokenizers.Whitespace()
    texts = {row.text for row in rows} | {row.answer for row in rows}
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = splitter
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "user_token": "<user>", "assistant_token": "<assistant>"},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=256,
    )
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
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=2 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_width // 32,
        projection_dim=size.vision_width,
        image_size=IMAGE_SIZE,
        patch_size=size.patch,
    )
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 32,
        num_key_value_heads=size.width // 32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // size.patch) ** 2,
        tie_word_embeddings=False,
        **ids,
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
