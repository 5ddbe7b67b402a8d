"""Families that take images through a tower and a projector, and have a decoder or a layout of their own."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.configs import (
    HIDDEN,
    IMAGE,
    IMG_VID,
    V_END,
    V_START,
    VOCAB,
    cohere2_text,
    pixtral,
    qwen3_5_text,
    siglip,
    text,
    two_layers,
    vit,
)
from zoo.families import family
from zoo.inputs import image


@family("InternVLForConditionalGeneration", "plain memory", media=lambda: image(1))
def internvl() -> Any:
    return t.InternVLConfig(
        text_config=text("qwen2"),
        vision_config=vit("internvl_vision", image_size=[28, 28], patch_size=[14, 14]),
        image_token_id=IMAGE,
        image_seq_length=1,
        tie_word_embeddings=False,
    )


@family(
    "Gemma3ForConditionalGeneration",
    "plain hub memory",
    media=lambda: image(4),
)
def gemma3() -> Any:
    return t.Gemma3Config(
        text_config=text(
            "gemma3_text",
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            tie_word_embeddings=True,
        ),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=V_START,
        eoi_token_index=V_END,
    )


@family("PaliGemmaForConditionalGeneration", "plain hub memory", media=lambda: image(4))
def paligemma() -> Any:
    return t.PaliGemmaConfig(
        text_config=text("gemma", head_dim=16, num_key_value_heads=1, tie_word_embeddings=True),
        vision_config=siglip(projection_dim=HIDDEN),
        image_token_index=IMAGE,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
    )


@family("Idefics3ForConditionalGeneration", media=lambda: image(4, 1, 1, 3, 56, 56))
def idefics3() -> Any:
    return t.Idefics3Config(
        text_config=text("llama"),
        vision_config=vit(image_size=56),
        scale_factor=2,
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )


@family("SmolVLMForConditionalGeneration", media=lambda: image(4, 1, 1, 3, 16, 16))
def smolvlm() -> Any:
    """Its tokens are a multiple of `patch_size`, without need: transformers 5.20 takes no other number of them."""
    return t.SmolVLMConfig(
        text_config=text("llama", tie_word_embeddings=True),
        vision_config=vit(image_size=16, patch_size=4),
        scale_factor=2,
        image_token_id=IMAGE,
        tie_word_embeddings=True,
    )


@family("Cohere2VisionForConditionalGeneration", "plain hub", media=lambda: image(1))
def cohere2_vision() -> Any:
    return t.Cohere2VisionConfig(
        text_config=cohere2_text(),
        vision_config=siglip(),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


@family("AyaVisionForConditionalGeneration", "plain hub memory", media=lambda: image(1))
def aya_vision() -> Any:
    return t.AyaVisionConfig(
        text_config=cohere2_text(),
        vision_config=siglip(),
        image_token_index=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


@family("GotOcr2ForConditionalGeneration", "plain memory", media=lambda: image(1, 1, 3, 64, 64))
def got_ocr2() -> Any:
    return t.GotOcr2Config(
        text_config=text("qwen2"),
        vision_config={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        image_token_index=IMAGE,
        image_seq_length=4,
    )


@family("Llama4ForConditionalGeneration", media=lambda: image(1))
def llama4() -> Any:
    return t.Llama4Config(
        text_config=text(
            "llama4_text",
            head_dim=16,
            intermediate_size_mlp=64,
            num_local_experts=2,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=64,
            no_rope_layers=[1, 0],
        ),
        vision_config=vit(
            intermediate_size=128,
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
            pixel_shuffle_ratio=0.5,
        ),
        image_token_index=IMAGE,
        boi_token_index=V_START,
        eoi_token_index=V_END,
    )


@family("Lfm2VlForConditionalGeneration", "plain hub")
def lfm2_vl() -> Any:
    return t.Lfm2VlConfig(
        text_config=text(
            "lfm2",
            layer_types=["conv", "full_attention"],
            block_ff_dim=128,
            block_auto_adjust_ff_dim=False,
            conv_L_cache=3,
            tie_word_embeddings=True,
        ),
        vision_config=two_layers(
            model_type="siglip2_vision_model", num_patches=16, patch_size=14, vision_use_head=False
        ),
        image_token_id=IMAGE,
        projector_hidden_size=64,
        downsample_factor=2,
    )


@family("FastVlmForConditionalGeneration", needs=("timm", "torchvision"))
def fast_vlm() -> Any:
    return t.FastVlmConfig(
        text_config=text("qwen2"),
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "test_efficientnet",
            "hidden_size": 256,
            "do_pooling": True,
            "global_pool": "avg",
        },
        image_token_index=IMAGE,
    )


@family("PerceptionLMForConditionalGeneration", needs=("timm", "torchvision"), media=lambda: image(4, 1, 1, 3, 28, 28))
def perception_lm() -> Any:
    return t.PerceptionLMConfig(
        text_config=text("llama"),
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_tiny_patch16_384",
            "do_pooling": False,
            "global_pool": "",
            "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": [28, 28], "patch_size": [14, 14]},
        },
        **IMG_VID,
    )


@family("MiniCPMV4_6ForConditionalGeneration")
def minicpmv4_6() -> Any:
    return t.MiniCPMV4_6Config(
        text_config=qwen3_5_text(), vision_config=vit(image_size=56), insert_layer_id=0, **IMG_VID
    )


@family("Ovis2ForConditionalGeneration", media=lambda: image(4))
def ovis2() -> Any:
    return t.Ovis2Config(
        text_config=text("qwen2", tie_word_embeddings=True),
        vision_config=vit(vocab_size=32, num_visual_indicator_tokens=5),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[280, 281, 282, 283, 284],
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
    )


@family("DeepseekVLForConditionalGeneration", "plain hub", media=lambda: image(4))
def deepseek_vl() -> Any:
    return t.DeepseekVLConfig(
        text_config=text("llama"), vision_config=siglip(), image_token_id=IMAGE, tie_word_embeddings=False
    )


@family("LightOnOcrForConditionalGeneration", media=lambda: image(1, image_sizes=torch.tensor([[28, 28]])))
def lighton_ocr() -> Any:
    return t.LightOnOcrConfig(
        text_config=text("qwen3", head_dim=16),
        vision_config=pixtral(),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
