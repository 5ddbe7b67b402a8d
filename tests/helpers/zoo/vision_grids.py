"""Qwen-VL, GLM-V and others that take a grid of patches, and whose language model has positions on three axes."""

from __future__ import annotations

from typing import Any

import transformers as t

from zoo.configs import (
    GLM_TOKENS,
    HIDDEN,
    QWEN_TOKENS,
    moe,
    mrope,
    qwen3_5_text,
    qwen3_vision,
    qwen_vision,
    rope,
    text,
    vit,
)
from zoo.families import family
from zoo.inputs import noise, qwen_image


@family("Qwen2VLForConditionalGeneration", "plain memory", media=qwen_image)
def qwen2_vl() -> Any:
    return t.Qwen2VLConfig(
        text_config=text("qwen2_vl_text", rope_parameters=mrope()),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": HIDDEN,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
        **QWEN_TOKENS,
    )


@family("Qwen2_5_VLForConditionalGeneration", "plain memory", media=qwen_image)
def qwen2_5_vl() -> Any:
    return t.Qwen2_5_VLConfig(
        text_config=text("qwen2_5_vl_text", rope_parameters=mrope()),
        vision_config=qwen_vision(fullatt_block_indexes=[1], window_size=28),
        **QWEN_TOKENS,
    )


@family("Qwen3VLForConditionalGeneration", media=lambda: qwen_image(16))
def qwen3_vl() -> Any:
    return t.Qwen3VLConfig(
        text_config=text("qwen3_vl_text", head_dim=16, rope_parameters=mrope(mrope_interleaved=True)),
        vision_config=qwen3_vision(),
        **QWEN_TOKENS,
    )


@family("Qwen3VLForConditionalGeneration", media=lambda: qwen_image(16))
def qwen3_vl_two_deepstack() -> Any:
    """Two deepstack mergers: nothing in a config says three."""
    cfg = qwen3_vl()
    cfg.vision_config.deepstack_visual_indexes = [0, 1]
    return cfg


@family("Qwen3VLMoeForConditionalGeneration", media=lambda: qwen_image(16))
def qwen3_vl_moe() -> Any:
    return t.Qwen3VLMoeConfig(
        text_config=text(
            "qwen3_vl_moe_text",
            head_dim=16,
            rope_parameters=mrope(mrope_interleaved=True),
            **moe(decoder_sparse_step=1),
        ),
        vision_config=qwen3_vision(),
        **QWEN_TOKENS,
    )


@family("Qwen3_5ForConditionalGeneration", media=lambda: qwen_image(16))
def qwen3_5() -> Any:
    return t.Qwen3_5Config(
        text_config=qwen3_5_text(),
        vision_config=qwen_vision(patch_size=16, num_position_embeddings=16),
        **QWEN_TOKENS,
    )


@family("Qwen3_5MoeForConditionalGeneration", "plain memory", media=lambda: qwen_image(16))
def qwen3_5_moe() -> Any:
    return t.Qwen3_5MoeConfig(
        text_config=qwen3_5_text("qwen3_5_moe_text", shared_expert_intermediate_size=48, **moe()),
        vision_config=qwen_vision(patch_size=16, num_position_embeddings=16),
        **QWEN_TOKENS,
    )


@family("Glm4vForConditionalGeneration", media=qwen_image)
def glm4v() -> Any:
    return t.Glm4vConfig(
        text_config=text("glm4v_text", rope_parameters=rope(mrope_section=[1, 1, 2], partial_rotary_factor=0.5)),
        vision_config=qwen_vision(image_size=56),
        **GLM_TOKENS,
    )


@family("Glm4vMoeForConditionalGeneration", "plain memory", media=qwen_image)
def glm4v_moe() -> Any:
    return t.Glm4vMoeConfig(
        text_config=text(
            "glm4v_moe_text",
            rope_parameters=rope(mrope_section=[1, 1, 2], partial_rotary_factor=0.5),
            moe_intermediate_size=48,
            n_routed_experts=4,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        ),
        vision_config=qwen_vision(image_size=56),
        **GLM_TOKENS,
    )


@family("GlmOcrForConditionalGeneration", media=qwen_image)
def glm_ocr() -> Any:
    return t.GlmOcrConfig(
        text_config=text("glm_ocr_text", head_dim=16, rope_parameters=mrope()),
        vision_config=qwen_vision(image_size=56),
        **GLM_TOKENS,
    )


@family("Ernie4_5_VLMoeForConditionalGeneration", "plain memory", media=lambda: qwen_image(frames=1))
def ernie4_5_vl_moe() -> Any:
    """Text and vision experts side by side in one decoder."""
    return t.Ernie4_5_VLMoeConfig(
        text_config=text(
            "ernie4_5_vl_moe_text",
            rope_parameters=rope(mrope_section=[3, 3, 2]),
            moe_intermediate_size=[48, 24],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
        ),
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64},
        tie_word_embeddings=False,
        **GLM_TOKENS,
    )


@family(
    "PaddleOCRVLForConditionalGeneration",
    "plain memory",
    media=lambda: {**qwen_image(), "pixel_values": noise(16, 3, 14, 14)},
)
def paddleocr_vl() -> Any:
    return t.PaddleOCRVLConfig(
        text_config=text("paddleocr_vl_text", head_dim=16, rope_parameters=mrope()),
        vision_config=vit("paddleocr_vl_vision", image_size=56),
        tie_word_embeddings=False,
        **QWEN_TOKENS,
    )
