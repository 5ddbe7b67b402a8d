"""The parts that configs of the zoo are made of, and the special tokens that all of its models share."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
VOCAB = 300
PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO, AUDIO = 290, 291, 292
V_START, V_END, A_START, A_END = 293, 294, 295, 296
SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", IMAGE: "<image>", VIDEO: "<video>", AUDIO: "<audio>"}
SPECIAL |= {V_START: "<v>", V_END: "</v>", A_START: "<a>", A_END: "</a>"}
HIDDEN = 64
IMG_VID: Config = {"image_token_id": IMAGE, "video_token_id": VIDEO}
VIS_SE: Config = {"vision_start_token_id": V_START, "vision_end_token_id": V_END}
GLM_SE: Config = {
    "image_start_token_id": V_START,
    "image_end_token_id": V_END,
    "video_start_token_id": V_START,
    "video_end_token_id": V_END,
}
QWEN_TOKENS: Config = {**IMG_VID, **VIS_SE}
GLM_TOKENS: Config = {**IMG_VID, **GLM_SE}
GRID: Config = {"image_grid_pinpoints": [[28, 28], [28, 56]]}


def text(model_type: str, **over: Any) -> Config:
    """A two-layer decoder with grouped-query attention."""
    return {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **over,
    }


def two_layers(model_type: str | None = None, **over: Any) -> Config:
    """Two layers as narrow as those of most towers and codecs of the zoo."""
    cfg = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **over}
    return {"model_type": model_type, **cfg} if model_type else cfg


def vit(model_type: str | None = None, **over: Any) -> Config:
    """A two-layer CLIP / SigLIP / Pixtral style tower over 28 x 28 images: four patches."""
    return two_layers(model_type, **{"image_size": 28, "patch_size": 14, **over})


def clip() -> Config:
    return vit("clip_vision_model", projection_dim=32, num_channels=3)


def siglip(**over: Any) -> Config:
    return vit("siglip_vision_model", vision_use_head=False, num_channels=3, **over)


def pixtral(**over: Any) -> Config:
    return vit("pixtral", head_dim=8, num_channels=3, rope_parameters=rope(), **over)


def whisper_like(model_type: str, **over: Any) -> Config:
    return {
        "model_type": model_type,
        "num_mel_bins": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "max_source_positions": 60,
        **over,
    }


def audio_encoder(model_type: str, **over: Any) -> Config:
    return two_layers(model_type, **{"num_mel_bins": 16, "max_source_positions": 60, **over})


def qformer(model_type: str | None = None) -> Config:
    return two_layers(model_type, encoder_hidden_size=32, vocab_size=32, max_position_embeddings=64)


def rope(**over: Any) -> Config:
    return {"rope_type": "default", "rope_theta": 10000.0, **over}


def mrope(**over: Any) -> Config:
    return rope(mrope_section=[2, 3, 3], **over)


def moe(**over: Any) -> Config:
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, **over}


def qwen_vision(**over: Any) -> Config:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        **over,
    }


def qwen3_vision() -> Config:
    return qwen_vision(depth=3, patch_size=16, num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2])


def qwen3_5_text(model_type: str = "qwen3_5_text", **over: Any) -> Config:
    partial = {"mrope_section": [1, 1, 0], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    return text(
        model_type,
        head_dim=16,
        rope_parameters=rope(**partial),
        layer_types=["linear_attention", "full_attention"],
        linear_conv_kernel_dim=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **over,
    )


def gemma_text(model_type: str, **over: Any) -> Config:
    """Four layers of which two share the keys and values of others, as Gemma 3n and 4 have them."""
    return text(
        model_type,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        head_dim=16,
        hidden_size_per_layer_input=16,
        sliding_window=16,
        tie_word_embeddings=True,
        **over,
    )


def cohere2_text() -> Config:
    layers = ["sliding_attention", "full_attention"]
    return text("cohere2", logit_scale=0.25, sliding_window=16, layer_types=layers, tie_word_embeddings=True)


def opt_text() -> Config:
    return {
        "model_type": "opt",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
