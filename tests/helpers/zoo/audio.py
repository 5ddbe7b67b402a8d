"""Families that take audio."""

from __future__ import annotations

from typing import Any

import transformers as t

from zoo.configs import A_END, A_START, AUDIO, audio_encoder, qformer, text, whisper_like
from zoo.families import family
from zoo.inputs import mel, noise, prompt


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


@family("MusicFlamingoForConditionalGeneration", "plain memory", media=lambda: mel(30, 120, "input_features_mask"))
def musicflamingo() -> Any:
    return t.MusicFlamingoConfig(
        text_config=text("qwen2"),
        audio_config=audio_encoder("audioflamingo3_encoder"),
        audio_token_id=AUDIO,
        audio_bos_token_id=A_START,
        audio_eos_token_id=A_END,
    )
