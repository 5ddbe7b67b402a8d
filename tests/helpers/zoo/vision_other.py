"""Families that take images through resamplers, Q-Formers, cross-attention or autoencoders; an encoder-decoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.configs import (
    HIDDEN,
    IMAGE,
    QWEN_TOKENS,
    VOCAB,
    opt_text,
    qformer,
    rope,
    text,
    two_layers,
    vit,
)
from zoo.families import family
from zoo.inputs import image


@family("Idefics2ForConditionalGeneration", media=lambda: image(2, 1, 1, 3, 28, 28))
def idefics2() -> Any:
    return t.Idefics2Config(
        text_config=text("mistral", head_dim=16, sliding_window=None),
        vision_config=vit(),
        perceiver_config={
            "hidden_size": HIDDEN,
            "resampler_n_latents": 2,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "num_key_value_heads": 1,
            "resampler_head_dim": 16,
        },
        image_token_id=IMAGE,
    )


@family("MllamaForConditionalGeneration", "plain memory")
def mllama() -> Any:
    return t.MllamaConfig(
        text_config=text(
            "mllama_text_model",
            num_hidden_layers=4,
            cross_attention_layers=[1, 3],
            rope_parameters=rope(rope_theta=500000.0),
        ),
        vision_config={
            "hidden_size": 32,
            "attention_heads": 4,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 2,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 4,
        },
        image_token_index=IMAGE,
    )


@family("AriaForConditionalGeneration", "plain memory", media=lambda: image(2))
def aria() -> Any:
    return t.AriaConfig(
        text_config=text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, intermediate_size=32),
        vision_config=vit("idefics3_vision"),
        projector_patch_to_query_dict={4: 2},
        image_token_index=IMAGE,
    )


@family("Kimi_K25ForConditionalGeneration", "plain memory")
def kimi_k25() -> Any:
    """Rotary projections permuted on disk, fused qkv, experts one by one on disk and stacked in memory."""
    return t.Kimi_K25Config(
        text_config=text(
            "deepseek_v3",
            num_key_value_heads=4,
            first_k_dense_replace=1,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
        ),
        vision_config=two_layers(pos_emb_height=4, pos_emb_width=4, patch_size=14),
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **QWEN_TOKENS,
    )


@family("Blip2ForConditionalGeneration", media=lambda: image(2))
def blip_2() -> Any:
    return t.Blip2Config(
        text_config=opt_text(),
        vision_config=vit(),
        qformer_config=qformer(),
        num_query_tokens=2,
        image_token_index=IMAGE,
        image_text_hidden_size=16,
    )


@family("InstructBlipForConditionalGeneration", media=lambda: image(2, qformer_input_ids=torch.tensor([[3, 4, 5]])))
def instructblip() -> Any:
    return t.InstructBlipConfig(
        text_config=opt_text(),
        vision_config=vit(),
        qformer_config=qformer(),
        num_query_tokens=2,
        image_token_index=IMAGE,
    )


@family("Kosmos2_5ForConditionalGeneration")
def kosmos2_5() -> Any:
    return t.Kosmos2_5Config(
        text_config={
            "vocab_size": VOCAB,
            "max_position_embeddings": 128,
            "embed_dim": HIDDEN,
            "layers": 2,
            "ffn_dim": 128,
            "attention_heads": 4,
        },
        vision_config={
            "hidden_size": 32,
            "patch_embed_hidden_size": 588,
            "intermediate_size": 64,
            "head_dim": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_num_patches": 16,
        },
        latent_query_num=4,
    )


@family("Emu3ForConditionalGeneration", "plain memory")
def emu3() -> Any:
    """Images enter through a vector-quantising autoencoder and a vocabulary map: no tower, no projector."""
    return t.Emu3Config(
        text_config={**text("emu3_text_model"), "rope_parameters": rope()},
        vq_config={
            "codebook_size": 16,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
            "attn_resolutions": [],
        },
        vocabulary_map={"<image>": IMAGE, **{f"<|visual token {i:06d}|>": 270 + i for i in range(16)}},
    )


@family("JanusForConditionalGeneration", media=lambda: image(4))
def janus() -> Any:
    """A tower to see with, and an autoencoder with its own head to draw with."""
    return t.JanusConfig(
        text_config=text("llama"),
        vision_config=vit(projection_dim=HIDDEN, num_image_tokens=4),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 32,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": HIDDEN,
            "image_token_embed_dim": HIDDEN,
        },
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )


@family("Florence2ForConditionalGeneration", media=lambda: image(17))
def florence2() -> Any:
    """An encoder-decoder language model whose embeddings are shared three ways."""
    return t.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": VOCAB,
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 128,
        },
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
            "projection_dim": HIDDEN,
        },
        image_token_id=IMAGE,
    )
