"""Families that take images and audio, and those that speak as well."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.configs import (
    A_END,
    A_START,
    AUDIO,
    HIDDEN,
    IMAGE,
    V_END,
    V_START,
    VIDEO,
    VIS_SE,
    VOCAB,
    Config,
    gemma_text,
    moe,
    mrope,
    qwen3_vision,
    qwen_vision,
    text,
    two_layers,
    vit,
    whisper_like,
)
from zoo.families import family
from zoo.inputs import mel, noise, qwen_image


@family("Gemma3nForConditionalGeneration", needs=("timm", "torchvision"))
def gemma3n() -> Any:
    return t.Gemma3nConfig(
        text_config=gemma_text(
            "gemma3n_text",
            activation_sparsity_pattern=[0.0] * 4,
            altup_num_inputs=2,
            laurel_rank=8,
            vocab_size_per_layer_input=VOCAB - 20,
        ),
        vision_config={
            "architecture": "test_efficientnet",  # a tiny timm net with the same kinds of tensors, BatchNorm and all
            "hidden_size": 256,
            "vocab_size": 8,
            "vocab_offset": VOCAB - 20,
            "do_pooling": False,
        },
        audio_config={
            "vocab_size": 8,
            "vocab_offset": VOCAB - 12,
            "input_feat_size": 32,
            "hidden_size": 32,
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 2,
            "sscp_conv_channel_size": [16, 8],
            "conf_conv_kernel_size": 3,
            "conf_attention_chunk_size": 4,
            "conf_attention_context_left": 5,
        },
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        boi_token_id=V_START,
        eoi_token_id=V_END,
        boa_token_id=A_START,
        eoa_token_id=A_END,
    )


@family(
    "Gemma4ForConditionalGeneration",
    media=lambda: {
        **mel(4, 16, "input_features_mask"),
        "input_features": noise(1, 16, 16),
        "input_features_mask": torch.ones(1, 16, dtype=torch.bool),
    },
)
def gemma4() -> Any:
    return t.Gemma4Config(
        text_config=gemma_text("gemma4_text", global_head_dim=32, vocab_size_per_layer_input=VOCAB),
        vision_config=two_layers(
            num_key_value_heads=4, head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=64
        ),
        audio_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "subsampling_conv_channels": [16, 8],
            "conv_kernel_size": 3,
            "attention_chunk_size": 4,
            "attention_context_left": 5,
            "output_proj_dims": 32,
            "use_clipped_linears": True,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=V_START,
        eoi_token_id=V_END,
        boa_token_id=A_START,
        eoa_token_index=A_END,
    )


@family("Gemma4ForConditionalGeneration", infinite=True)
def gemma4_infinite() -> Any:
    """Clip bounds at +-inf, as a Gemma 4 made from a config has them."""
    return gemma4()


def omni_thinker() -> Config:
    return {
        "text_config": text("qwen2_5_omni_text", rope_parameters=mrope()),
        "vision_config": qwen_vision(fullatt_block_indexes=[1], window_size=28),
        "audio_config": whisper_like("qwen2_5_omni_audio_encoder", n_window=10, output_dim=HIDDEN),
        "audio_token_index": AUDIO,
        "image_token_index": IMAGE,
        "video_token_index": VIDEO,
        "audio_start_token_id": A_START,
        "audio_end_token_id": A_END,
        "user_token_id": 10,
        **VIS_SE,
    }


# In transformers 5.20 the names of a thinker in memory are those on disk: it has no model apart from its head.
THINKER_IN_MEMORY = " memory" if hasattr(t, "Qwen2_5OmniThinkerModel") else ""


@family(
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "plain hub" + THINKER_IN_MEMORY,
    published_prefix="thinker.",
    media=qwen_image,
)
def qwen2_5_omni_thinker() -> Any:
    return t.Qwen2_5OmniThinkerConfig(**omni_thinker())


@family("Qwen2_5OmniForConditionalGeneration", "plain" + THINKER_IN_MEMORY)
def qwen2_5_omni() -> Any:
    """The whole thing: thinker, talker, and the vocoder token2wav."""
    return t.Qwen2_5OmniConfig(
        thinker_config=omni_thinker(),
        talker_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "embedding_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rope_parameters": mrope(),
            "audio_token_index": AUDIO,
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            "audio_start_token_id": A_START,
            "audio_end_token_id": A_END,
            "tts_text_start_token_id": 297,
            "tts_text_end_token_id": 298,
            "tts_text_pad_token_id": 299,
            "tts_codec_start_token_id": 60,
            "tts_codec_end_token_id": 61,
            "tts_codec_pad_token_id": 62,
            "tts_codec_mask_token_id": 63,
            **VIS_SE,
        },
        token2wav_config={"dit_config": _dit(), "bigvgan_config": _bigvgan()},
    )


def _dit() -> Config:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ff_mult": 2,
        "emb_dim": 16,
        "head_dim": 8,
        "block_size": 4,
        "look_ahead_layers": [1],
        "look_backward_layers": [0],
        "num_embeds": 64,
        "mel_dim": 16,
        "enc_emb_dim": 16,
        "enc_dim": 16,
        "enc_channels": [16, 16, 16, 16, 48],
        "enc_attention_channels": 8,
        "enc_res2net_scale": 2,
        "enc_se_channels": 8,
    }


def _bigvgan() -> Config:
    return {
        "mel_dim": 16,
        "upsample_initial_channel": 64,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [2, 2],
        "upsample_kernel_sizes": [4, 4],
    }


@family(
    "Qwen3OmniMoeThinkerForConditionalGeneration",
    "plain hub memory",
    published_prefix="thinker.",
    media=lambda: qwen_image(16),
)
def qwen3_omni_moe_thinker() -> Any:
    return t.Qwen3OmniMoeThinkerConfig(**_qwen3_omni_thinker())


def _qwen3_omni_thinker() -> Config:
    return {
        "text_config": text(
            "qwen3_omni_moe_text",
            head_dim=16,
            rope_parameters=mrope(mrope_interleaved=True),
            **moe(decoder_sparse_step=1),
        ),
        "vision_config": qwen3_vision(),
        "audio_config": whisper_like(
            "qwen3_omni_moe_audio_encoder", n_window=10, n_window_infer=20, output_dim=HIDDEN, downsample_hidden_size=8
        ),
        "audio_token_id": AUDIO,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "audio_start_token_id": A_START,
        "audio_end_token_id": A_END,
        "user_token_id": 10,
        **VIS_SE,
    }


@family("Qwen3OmniMoeForConditionalGeneration", "plain memory")
def qwen3_omni_moe() -> Any:
    """Thinker, talker, the talker's code predictor, and the vocoder code2wav; mixtures of experts in two of them."""
    experts = moe(moe_intermediate_size=32)
    return t.Qwen3OmniMoeConfig(
        thinker_config=_qwen3_omni_thinker(),
        talker_config={
            "text_config": text(
                "qwen3_omni_moe_talker_text",
                vocab_size=64,
                hidden_size=32,
                head_dim=16,
                rope_parameters=mrope(mrope_interleaved=True),
                shared_expert_intermediate_size=32,
                **experts,
            ),
            "code_predictor_config": two_layers(num_key_value_heads=2, head_dim=8, vocab_size=64, num_code_groups=4),
            "num_code_groups": 4,
            "thinker_hidden_size": HIDDEN,
            "accept_hidden_layer": 1,
            "spatial_merge_size": 2,
        },
        code2wav_config=two_layers(
            num_key_value_heads=4,
            codebook_size=64,
            upsample_rates=(2, 2),
            upsampling_ratios=(2, 2),
            decoder_dim=32,
            num_quantizers=4,
        ),
    )


@family("Phi4MultimodalForCausalLM")
def phi4_multimodal() -> Any:
    """The decoder has no sub-config of its own."""
    return t.Phi4MultimodalConfig(
        **{k: v for k, v in text("").items() if k != "model_type"},
        vision_config=vit(crop_size=28, image_token_id=IMAGE),
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_blocks": 2,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "input_size": 16,
            "nemo_conv_channels": 16,
            "audio_token_id": AUDIO,
        },
    )
