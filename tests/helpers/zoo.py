"""A zoo of tiny random-weight multimodal LLMs, in every layout their checkpoints come in.

Each family is a transformers config of a few hundred thousand parameters. `build` writes, per layout,

    <layout>/<family>/base             random init + N(0, 0.02) on every floating tensor
    <layout>/<family>/expert_{0,1,2}   base + N(0, 0.01) on every floating tensor, one seed each

with a 300-token byte-level tokenizer and marker versions of the side files of a published model. The layouts hold the
same weights under different names:

    plain   what `save_pretrained` writes for a model made from a config
    hub     the older names of published checkpoints that transformers still reads, for instance
            `vision_tower.vision_model.encoder...`; a fine-tune of such a checkpoint has them too
    memory  the names of the model's own state_dict (`save_original_format=False`)

A family lists only the layouts whose names differ. Random weights prove plumbing and arithmetic, nothing about quality.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping

Config = dict[str, Any]
Inputs = dict[str, Any]

VOCAB = 300
PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO, AUDIO = 290, 291, 292
V_START, V_END, A_START, A_END = 293, 294, 295, 296
SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", IMAGE: "<image>", VIDEO: "<video>", AUDIO: "<audio>"}
SPECIAL |= {V_START: "<v>", V_END: "</v>", A_START: "<a>", A_END: "</a>"}
HIDDEN = 64
BASE_STD, EXPERT_STD, N_EXPERTS = 0.02, 0.01, 3
# A count that float32 cannot hold: a BatchNorm counter that went through a float comes back changed.
BATCHES_TRACKED = 2**24 + 1


# ------------------------------------------------------------------------------------------------ sub-configs


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


def vit(model_type: str | None = None, **over: Any) -> Config:
    """A two-layer CLIP / SigLIP / Pixtral style tower over 28 x 28 images: four patches."""
    cfg = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        **over,
    }
    return {"model_type": model_type, **cfg} if model_type else cfg


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
    return {
        "model_type": model_type,
        "num_mel_bins": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_size": 32,
        "max_source_positions": 60,
        **over,
    }


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


IMG_VID: Config = {"image_token_id": IMAGE, "video_token_id": VIDEO}
VIS_SE: Config = {"vision_start_token_id": V_START, "vision_end_token_id": V_END}
GLM_SE: Config = {
    "image_start_token_id": V_START,
    "image_end_token_id": V_END,
    "video_start_token_id": V_START,
    "video_end_token_id": V_END,
}
GRID: Config = {"image_grid_pinpoints": [[28, 28], [28, 56]]}


# ----------------------------------------------------------------------------------------------------- inputs


def prompt(*tokens: int) -> Inputs:
    return {"input_ids": torch.tensor([[BOS, 11, *tokens, 12, 13, 14]])}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def image(n_tokens: int, *shape: int, **more: Any) -> Inputs:
    """A prompt with `n_tokens` image placeholders, and pixel values of `shape`."""
    return {**prompt(*[IMAGE] * n_tokens), "pixel_values": noise(*(shape or (1, 3, 28, 28))), **more}


def qwen_image(patch: int = 14, frames: int = 2) -> Inputs:
    """One image of 4 x 4 patches, merged 2 x 2 into four tokens."""
    ids = prompt(V_START, *[IMAGE] * 4, V_END)
    kinds = torch.where(ids["input_ids"] == IMAGE, 1, 0)  # what the processor says each token is: 1 = image
    return {
        **ids,
        "mm_token_type_ids": kinds,
        "pixel_values": noise(16, 3 * frames * patch * patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def mel(n_tokens: int, frames: int, mask: str = "") -> Inputs:
    """A prompt with `n_tokens` audio placeholders, and a mel spectrogram of 16 bins."""
    inputs = {**prompt(*[AUDIO] * n_tokens), "input_features": noise(1, 16, frames)}
    return {**inputs, mask: torch.ones(1, frames, dtype=torch.long)} if mask else inputs


# --------------------------------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Family:
    """One family: `config()` makes its tiny config, `media()` inputs with an image or a sound in them."""

    name: str
    cls: str
    config: Callable[[], t.PretrainedConfig]
    layouts: tuple[str, ...]
    media: Callable[[], Inputs] | None
    needs: tuple[str, ...]
    published_prefix: str  # published inside a larger model, under this prefix (hub layout)
    infinite: bool  # keeps the infinite buffers the class starts with

    @property
    def missing(self) -> str:
        """Why this family cannot be built here; empty when it can."""
        absent = [module for module in self.needs if importlib.util.find_spec(module) is None]
        if absent:
            return f"needs {', '.join(absent)}"
        return "" if hasattr(t, self.cls) else f"this transformers has no {self.cls}"


FAMILIES: dict[str, Family] = {}
Maker = Callable[[], t.PretrainedConfig]


def family(
    cls: str,
    layouts: str = "plain",
    media: Callable[[], Inputs] | None = None,
    needs: tuple[str, ...] = (),
    published_prefix: str = "",
    infinite: bool = False,
) -> Callable[[Maker], Maker]:
    """Enter the decorated config maker into the zoo under its own name."""

    def enter(make: Maker) -> Maker:
        name = make.__name__
        FAMILIES[name] = Family(name, cls, make, tuple(layouts.split()), media, needs, published_prefix, infinite)
        return make

    return enter


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
        **IMG_VID,
        **VIS_SE,
    )


@family("Qwen2_5_VLForConditionalGeneration", "plain memory", media=qwen_image)
def qwen2_5_vl() -> Any:
    return t.Qwen2_5_VLConfig(
        text_config=text("qwen2_5_vl_text", rope_parameters=mrope()),
        vision_config=qwen_vision(fullatt_block_indexes=[1], window_size=28),
        **IMG_VID,
        **VIS_SE,
    )


@family("Qwen3VLForConditionalGeneration", media=lambda: qwen_image(16))
def qwen3_vl() -> Any:
    return t.Qwen3VLConfig(
        text_config=text("qwen3_vl_text", head_dim=16, rope_parameters=mrope(mrope_interleaved=True)),
        vision_config=qwen3_vision(),
        **IMG_VID,
        **VIS_SE,
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
        **IMG_VID,
        **VIS_SE,
    )


@family("Qwen3_5ForConditionalGeneration", media=lambda: qwen_image(16))
def qwen3_5() -> Any:
    return t.Qwen3_5Config(
        text_config=qwen3_5_text(),
        vision_config=qwen_vision(patch_size=16, num_position_embeddings=16),
        **IMG_VID,
        **VIS_SE,
    )


@family("Qwen3_5MoeForConditionalGeneration", "plain memory", media=lambda: qwen_image(16))
def qwen3_5_moe() -> Any:
    return t.Qwen3_5MoeConfig(
        text_config=qwen3_5_text("qwen3_5_moe_text", shared_expert_intermediate_size=48, **moe()),
        vision_config=qwen_vision(patch_size=16, num_position_embeddings=16),
        **IMG_VID,
        **VIS_SE,
    )


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
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
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


@family("Qwen2AudioForConditionalGeneration", "plain memory", media=lambda: mel(30, 120, "feature_attention_mask"))
def qwen2_audio() -> Any:
    return t.Qwen2AudioConfig(
        text_config=text("qwen2"), audio_config=whisper_like("qwen2_audio_encoder"), audio_token_index=AUDIO
    )


@family("Qwen2AudioForConditionalGeneration", "plain memory", media=lambda: mel(30, 120, "feature_attention_mask"))
def qwen2_audio_llama() -> Any:
    return t.Qwen2AudioConfig(
        text_config=text("llama"), audio_config=whisper_like("qwen2_audio_encoder"), audio_token_index=AUDIO
    )


@family("AudioFlamingo3ForConditionalGeneration", "plain memory", media=lambda: mel(30, 120, "input_features_mask"))
def audioflamingo3() -> Any:
    return t.AudioFlamingo3Config(
        text_config=text("qwen2"), audio_config=audio_encoder("audioflamingo3_encoder"), audio_token_id=AUDIO
    )


@family("VoxtralForConditionalGeneration", "plain memory", media=lambda: mel(15, 120))
def voxtral() -> Any:
    return t.VoxtralConfig(
        text_config=text("llama", head_dim=16),
        audio_config=audio_encoder("voxtral_encoder", intermediate_size=128, vocab_size=32),
        audio_token_id=AUDIO,
    )


@family(
    "GraniteSpeechForConditionalGeneration",
    "plain memory",
    media=lambda: {**prompt(*[AUDIO] * 3), "input_features": noise(1, 15, 16)},
)
def granite_speech() -> Any:
    """A conformer with BatchNorm counters, and a QFormer whose cross-attention is in every second layer."""
    return t.GraniteSpeechConfig(
        text_config=text("granite", logits_scaling=1.0, attention_multiplier=0.25),
        encoder_config={
            "model_type": "granite_speech_encoder",
            "input_dim": 16,
            "num_layers": 2,
            "hidden_dim": 32,
            "feedforward_mult": 2,
            "num_heads": 4,
            "output_dim": 8,
            "context_size": 20,
            "max_pos_emb": 32,
            "conv_kernel_size": 3,
            "conv_expansion_factor": 2,
        },
        projector_config=qformer("blip_2_qformer"),
        audio_token_index=AUDIO,
        has_lora_adapter=False,
        downsample_rate=5,
        window_size=15,
        tie_word_embeddings=False,
    )


def qformer(model_type: str | None = None) -> Config:
    cfg: Config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "encoder_hidden_size": 32,
        "vocab_size": 32,
        "max_position_embeddings": 64,
    }
    return {"model_type": model_type, **cfg} if model_type else cfg


@family("GlmAsrForConditionalGeneration", "plain memory", media=lambda: mel(15, 120, "input_features_mask"))
def glmasr() -> Any:
    return t.GlmAsrConfig(
        text_config=text("llama"),
        audio_config={
            "model_type": "glmasr_encoder",
            "num_mel_bins": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "hidden_size": 32,
            "head_dim": 8,
            "max_position_embeddings": 60,
        },
        audio_token_id=AUDIO,
    )


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
            "code_predictor_config": _decoder(num_key_value_heads=2, head_dim=8, vocab_size=64, num_code_groups=4),
            "num_code_groups": 4,
            "thinker_hidden_size": HIDDEN,
            "accept_hidden_layer": 1,
            "spatial_merge_size": 2,
        },
        code2wav_config=_decoder(
            num_key_value_heads=4,
            codebook_size=64,
            upsample_rates=(2, 2),
            upsampling_ratios=(2, 2),
            decoder_dim=32,
            num_quantizers=4,
        ),
    )


def _decoder(**over: Any) -> Config:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**small, **over}


@family("Cohere2VisionForConditionalGeneration", "plain hub", media=lambda: image(1))
def cohere2_vision() -> Any:
    return t.Cohere2VisionConfig(
        text_config=_cohere2(),
        vision_config=siglip(),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


def _cohere2() -> Config:
    layers = ["sliding_attention", "full_attention"]
    return text("cohere2", logit_scale=0.25, sliding_window=16, layer_types=layers, tie_word_embeddings=True)


@family("AyaVisionForConditionalGeneration", "plain hub memory", media=lambda: image(1))
def aya_vision() -> Any:
    return t.AyaVisionConfig(
        text_config=_cohere2(),
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
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_patches": 16,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_id=IMAGE,
        projector_hidden_size=64,
        downsample_factor=2,
    )


@family("AriaForConditionalGeneration", "plain memory", media=lambda: image(2))
def aria() -> Any:
    return t.AriaConfig(
        text_config=text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, intermediate_size=32),
        vision_config=vit("idefics3_vision"),
        projector_patch_to_query_dict={4: 2},
        image_token_index=IMAGE,
    )


@family("VideoLlama3ForConditionalGeneration")
def video_llama_3() -> Any:
    return t.VideoLlama3Config(
        text_config=text("qwen2"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 14,
        },
        **IMG_VID,
    )


@family("Glm4vForConditionalGeneration", media=qwen_image)
def glm4v() -> Any:
    return t.Glm4vConfig(
        text_config=text("glm4v_text", rope_parameters=rope(mrope_section=[1, 1, 2], partial_rotary_factor=0.5)),
        vision_config=qwen_vision(image_size=56),
        **IMG_VID,
        **GLM_SE,
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
        **IMG_VID,
        **GLM_SE,
    )


@family("GlmOcrForConditionalGeneration", media=qwen_image)
def glm_ocr() -> Any:
    return t.GlmOcrConfig(
        text_config=text("glm_ocr_text", head_dim=16, rope_parameters=mrope()),
        vision_config=qwen_vision(image_size=56),
        **IMG_VID,
        **GLM_SE,
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
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
            "patch_size": 14,
        },
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **IMG_VID,
        **VIS_SE,
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


@family("Blip2ForConditionalGeneration", media=lambda: image(2))
def blip_2() -> Any:
    return t.Blip2Config(
        text_config=_opt(),
        vision_config=vit(),
        qformer_config=qformer(),
        num_query_tokens=2,
        image_token_index=IMAGE,
        image_text_hidden_size=16,
    )


def _opt() -> Config:
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


@family("InstructBlipForConditionalGeneration", media=lambda: image(2, qformer_input_ids=torch.tensor([[3, 4, 5]])))
def instructblip() -> Any:
    return t.InstructBlipConfig(
        text_config=_opt(),
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


@family("DeepseekVLForConditionalGeneration", "plain hub", media=lambda: image(4))
def deepseek_vl() -> Any:
    return t.DeepseekVLConfig(
        text_config=text("llama"), vision_config=siglip(), image_token_id=IMAGE, tie_word_embeddings=False
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
        **IMG_VID,
        **GLM_SE,
    )


@family("LightOnOcrForConditionalGeneration", media=lambda: image(1, image_sizes=torch.tensor([[28, 28]])))
def lighton_ocr() -> Any:
    return t.LightOnOcrConfig(
        text_config=text("qwen3", head_dim=16),
        vision_config=pixtral(),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
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
        **IMG_VID,
        **VIS_SE,
    )


@family("MusicFlamingoForConditionalGeneration", "plain memory", media=lambda: mel(30, 120, "input_features_mask"))
def musicflamingo() -> Any:
    return t.MusicFlamingoConfig(
        text_config=text("qwen2"),
        audio_config=audio_encoder("audioflamingo3_encoder"),
        audio_token_id=AUDIO,
        audio_bos_token_id=A_START,
        audio_eos_token_id=A_END,
    )


# --------------------------------------------------------------------------------------------------- building


def _seed(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


def _fresh(spec: Family) -> Any:
    """The same model in every run. transformers leaves some parameters as it found the memory (the experts of
    Qwen3-Omni's talker): torch's deterministic mode makes NaN of those, and `_perturb` zero and noise."""
    torch.manual_seed(_seed(spec.name, "init"))
    torch.use_deterministic_algorithms(True)
    try:
        return getattr(t, spec.cls)(spec.config()).float().eval()
    finally:
        torch.use_deterministic_algorithms(False)


def _perturb(model: torch.nn.Module, std: float, seed: int, keep_infinite: bool) -> None:
    """Add N(0, std) to every floating tensor of the state dict, tied tensors once."""
    generator = torch.Generator().manual_seed(seed)
    seen = set()
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                tensor.fill_(BATCHES_TRACKED)
            key = (tensor.data_ptr(), tensor.shape)
            if not tensor.is_floating_point() or tensor.numel() == 0 or key in seen:
                continue
            seen.add(key)
            # a trained Gemma 4 has numbers where a fresh one has infinite clip bounds
            bound = float("inf") if keep_infinite else 8.0
            torch.nan_to_num_(tensor, nan=0.0, posinf=bound, neginf=-bound)
            tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std)


def tokenizer(vocab: int = VOCAB, **named: str) -> Any:
    """A byte-level tokenizer of `vocab` tokens with the placeholders of the zoo; `named` has, say, its image_token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    names = [SPECIAL.get(i) or next(letters, None) or f"<unused{i}>" for i in range(vocab)]
    model = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], fuse_unk=False))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    extra = [SPECIAL[i] for i in (IMAGE, VIDEO, AUDIO, V_START, V_END, A_START, A_END)]
    return t.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=extra,
        **named,
    )


def write_side_files(path: Path, tag: str) -> None:
    """Marker versions of the files a processor needs, so a merge can be checked for copying them."""
    marker = {"zoo_marker": tag}
    contents: dict[str, Config] = {
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", **marker},
        "processor_config.json": {"processor_class": "LlavaProcessor", **marker},
        "video_preprocessor_config.json": {"video_processor_type": "LlavaOnevisionVideoProcessor", **marker},
        "chat_template.json": {"chat_template": f"{{# {tag} #}}"},
        "vocab.json": marker,
        "generation_config.json": {"max_new_tokens": 7},
    }
    for name, content in contents.items():
        (path / name).write_text(json.dumps(content, indent=2))
    template = f"{{# {tag} #}}{{% for m in messages %}}{{{{ m['content'] }}}}{{% endfor %}}"
    (path / "chat_template.jinja").write_text(template)


def _save(model: Any, path: Path, spec: Family, tag: str, layout: str) -> None:
    """Write one checkpoint in `layout`, with tokenizer and side files."""
    model._weight_conversions = None
    if layout == "hub" and not spec.published_prefix:
        # What from_pretrained records for a model that was read from a checkpoint with the old names.
        rules = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [rule for rule in rules if not getattr(rule, "prefix_to_add", None)]
    model.save_pretrained(path, save_original_format=layout != "memory")
    if layout == "hub" and spec.published_prefix:
        weights = path / "model.safetensors"
        renamed = {f"{spec.published_prefix}{name}": tensor for name, tensor in load_file(weights).items()}
        save_file(renamed, weights, metadata={"format": "pt"})
    tokenizer().save_pretrained(path)
    write_side_files(path, f"{spec.name}/{tag}")
    if spec.cls == "Qwen2_5OmniForConditionalGeneration":  # from_pretrained of the full model insists on this file
        torch.save({"tiny": {"bos_token": 60, "cond": torch.zeros(1, 16)}}, path / "spk_dict.pt")


def disk_names(path: Path) -> set[str]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return set(file.keys())


def build(name: str, root: Path, layouts: Iterable[str] | None = None) -> None:
    """Write base and experts of one family under `root`, in its layouts (or the ones named)."""
    spec = FAMILIES[name]
    wanted = tuple(layouts or spec.layouts)
    model = _fresh(spec)
    _perturb(model, BASE_STD, _seed(name, "base"), spec.infinite)
    base = copy.deepcopy(model.state_dict())
    for tag in ("base", *(f"expert_{i}" for i in range(N_EXPERTS))):
        if tag != "base":
            model.load_state_dict(base)
            _perturb(model, EXPERT_STD, _seed(name, tag), spec.infinite)
        for layout in wanted:
            _save(model, root / layout / name / tag, spec, tag, layout)
    seen = {layout: disk_names(root / layout / name / "base") for layout in wanted}
    if any(seen[a] == seen[b] for a in seen for b in seen if a < b):
        raise AssertionError(f"{name}: two of the layouts {', '.join(seen)} have the same names")
