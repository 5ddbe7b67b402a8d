"""The role of every tensor of every family, against a table written by hand from the models' structure.

Each line says which module is what; the longest path that a tensor's name starts with decides. Embeddings, norms and
biases of the language model are told apart by their own names, which the table need not repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers
import zoo

from mergekit_mm.checkpoints.meta_model import meta_model_of
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role, classify, classify_names

L, V, A, D, P, OTHER = (
    "language_model",
    Role.VISION_TOWER,
    Role.AUDIO_TOWER,
    Role.VIDEO_TOWER,
    Role.PROJECTOR,
    Role.OTHER,
)

LLAVA = {"model.language_model": L, "lm_head": L, "model.vision_tower": V, "model.multi_modal_projector": P}
LLAVA_NEXT = LLAVA | {"model.image_newline": P}
QWEN = {"model.language_model": L, "lm_head": L, "model.visual": V, "model.visual.merger": P}
QWEN_DEEPSTACK = QWEN | {"model.visual.deepstack_merger_list": P}
GLM = QWEN | {"model.visual.downsample": P}
IDEFICS = {"model.text_model": L, "lm_head": L, "model.vision_model": V, "model.connector": P}
AUDIO = {"model.language_model": L, "lm_head": L, "model.audio_tower": A, "model.multi_modal_projector": P}
GEMMA_N = {k: v for k, v in LLAVA.items() if v != P} | {
    "model.audio_tower": A,
    "model.embed_vision": P,
    "model.embed_audio": P,
}
BLIP = {"language_model": L, "vision_model": V, "qformer": P, "query_tokens": P, "language_projection": P}
JANUS = {"model.language_model": L, "lm_head": L, "model.vision_model": V, "model.aligner": P}


def thinker(prefix: str, *connectors: str) -> dict[str, object]:
    """Of a Qwen-Omni model: its parts are side by side in transformers 5.20, and within `model` in 5.23."""
    language = ("model.embed_tokens", "model.layers", "model.norm", "model.language_model", "lm_head")
    parts = {"visual": V, "audio_tower": A, **dict.fromkeys(connectors, P)}
    lines = dict.fromkeys(language, L) | parts | {f"model.{part}": role for part, role in parts.items()}
    return {prefix + path: role for path, role in lines.items()}


QWEN2_5_OMNI = ("visual.merger", "audio_tower.proj")
QWEN3_OMNI = ("visual.merger", "visual.merger_list", "audio_tower.proj1", "audio_tower.proj2")

EXPECTED: dict[str, dict[str, object]] = {
    **dict.fromkeys(
        [
            "llava",
            "llava_qwen2",
            "llava_pixtral",
            "vipllava",
            "internvl",
            "gemma3",
            "paligemma",
            "mistral3",
            "cohere2_vision",
            "aya_vision",
            "got_ocr2",
            "lfm2_vl",
            "aria",
            "fast_vlm",
            "perception_lm",
            "florence2",
        ],
        LLAVA,
    ),
    **dict.fromkeys(["llava_next", "llava_onevision", "llava_next_video"], LLAVA_NEXT),
    **dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe"], QWEN),
    **dict.fromkeys(["qwen3_vl", "qwen3_vl_two_deepstack", "qwen3_vl_moe"], QWEN_DEEPSTACK),
    **dict.fromkeys(["glm4v", "glm4v_moe", "glm_ocr"], GLM),
    **dict.fromkeys(["idefics2", "idefics3", "smolvlm"], IDEFICS),
    **dict.fromkeys(
        ["qwen2_audio", "qwen2_audio_llama", "audioflamingo3", "voxtral", "glmasr", "musicflamingo"],
        AUDIO,
    ),
    **dict.fromkeys(["gemma3n", "gemma4", "gemma4_infinite"], GEMMA_N),
    **dict.fromkeys(["blip_2", "instructblip"], BLIP),
    "video_llava": {
        "model.language_model": L,
        "lm_head": L,
        "model.image_tower": V,
        "model.video_tower": D,
        "model.multi_modal_projector": P,
    },
    "mllama": {k.replace("vision_tower", "vision_model"): v for k, v in LLAVA.items()},
    "granite_speech": {"model.language_model": L, "lm_head": L, "model.encoder": A, "model.projector": P},
    "llama4": {
        "language_model": L,
        "vision_model": V,
        "vision_model.vision_adapter": P,
        "multi_modal_projector": P,
    },
    "qwen2_5_omni_thinker": thinker("", *QWEN2_5_OMNI),
    "qwen2_5_omni": thinker("thinker.", *QWEN2_5_OMNI) | {"talker": OTHER, "token2wav": OTHER},
    "qwen3_omni_moe_thinker": thinker("", *QWEN3_OMNI),
    "qwen3_omni_moe": thinker("thinker.", *QWEN3_OMNI) | {"talker": OTHER, "code2wav": OTHER},
    "video_llama_3": {"model.language_model": L, "lm_head": L, "model.vision_model": V, "model.projector": P},
    "paddleocr_vl": {"model.language_model": L, "lm_head": L, "model.visual": V, "model.projector": P},
    "kimi_k25": {"model.language_model": L, "lm_head": L, "model.vision_tower": V, "model.mm_projector": P},
    "minicpmv4_6": {
        "model.language_model": L,
        "lm_head": L,
        "model.vision_tower": V,
        "model.vision_tower.vit_merger": P,
        "model.merger": P,
    },
    "ovis2": {
        "model.language_model": L,
        "lm_head": L,
        "model.vision_tower": V,
        "model.visual_embeddings_table": P,
    },
    "phi4_multimodal": {
        "model": L,
        "lm_head": L,
        "model.embed_tokens_extend": P,
        "model.embed_tokens_extend.image_embed.img_processor": V,
        "model.embed_tokens_extend.audio_embed.encoder": A,
    },
    "kosmos2_5": {"text_model": L, "vision_model": V, "image_to_text_projection": P},
    "emu3": {"model.text_model": L, "lm_head": L, "model.vqmodel": V},
    "janus": JANUS
    | {
        "model.vqmodel": V,
        "model.generation_embeddings": P,
        "model.generation_aligner": P,
        "model.generation_head": P,
    },
    "deepseek_vl": JANUS,
    "ernie4_5_vl_moe": {
        "model.language_model": L,
        "lm_head": L,
        "model.vision_tower": V,
        "model.resampler_model": P,
    },
    "lighton_ocr": {
        "model.language_model": L,
        "lm_head": L,
        "model.vision_encoder": V,
        "model.vision_projection": P,
    },
}


# Families beside the zoo, for what it lacks: the class, a tiny config of it, and the roles.
BESIDE: dict[str, tuple[str, Callable[[], Any], dict[str, object]]] = {
    "a tower of two encoders, one of which has a projection": (
        "DeepseekOcr2ForConditionalGeneration",
        lambda: transformers.DeepseekOcr2Config(
            text_config=zoo.text(
                "deepseek_ocr2_text", mlp_layer_types=["dense"] * 2, num_experts_per_tok=2, n_group=1, topk_group=1
            ),
            vision_config={
                "sam_config": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
                "encoder_config": zoo.text("deepseek_ocr2_encoder"),
            },
        ),
        LLAVA | {"model.view_separator": P},
    ),
    "a connector within a tower": (
        "HunYuanVLForConditionalGeneration",
        lambda: transformers.HunYuanVLConfig(
            text_config=zoo.text("hunyuan_vl_text", head_dim=16),
            vision_config=zoo.vit(text_hidden_size=zoo.HIDDEN, max_image_size=64),
        ),
        {"model.language_model": L, "lm_head": L, "model.vision_tower": V, "model.vision_tower.patch_merger": P},
    ),
    "an encoder, of images": (
        "VisionEncoderDecoderModel",
        lambda: transformers.VisionEncoderDecoderConfig(
            encoder=zoo.vit("vit"), decoder=zoo.text("bert", is_decoder=True, add_cross_attention=True)
        ),
        {"encoder": V, "enc_to_dec_proj": P, "decoder": L},
    ),
    "a head that is the language model's own": (
        "NemotronH_Omni_Reasoning_V3",
        lambda: transformers.NemotronH_Omni_Reasoning_V3_Config(
            text_config={"model_type": "nemotron_h", "hidden_size": 16, "vocab_size": 40},
            vision_config={"num_hidden_layers": 1, "video_temporal_patch_size": 2},
        ),
        {"language_model": L, "vision_model": V, "multi_modal_projector": P},
    ),
    "a codec": (
        "KyutaiSpeechToTextForConditionalGeneration",
        lambda: transformers.KyutaiSpeechToTextConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            head_dim=8,
            ffn_dim=32,
            audio_pad_token_id=7,
        ),
        {"model": L, "lm_head": L, "codec_model": A},
    ),
    "a decoder that is the whole model, with a tower of no class of its own": (
        "IdeficsForVisionText2Text",
        lambda: transformers.IdeficsConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
        ),
        {"model": L, "lm_head": L, "model.vision_model": V},
    ),
    "a decoder that shares the matrices of a language model": (
        "DiffusionGemmaForBlockDiffusion",
        lambda: transformers.DiffusionGemmaConfig(
            text_config=zoo.text("diffusion_gemma_text", num_experts=2, top_k_experts=1, moe_intermediate_size=24),
            vision_config={"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24},
        ),
        {
            "model.encoder.language_model": L,
            "model.encoder.vision_tower": V,
            "model.encoder.embed_vision": P,
            "model.decoder": L,
            "model.decoder.self_conditioning": P,
            "lm_head": L,
            **{f"model.decoder.layers.{i}.layer_scalar": P for i in range(2)},  # a constant, which is not shared
        },
    ),
}


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_roles(family: str) -> None:
    spec = zoo.FAMILIES[family]
    if spec.missing:
        pytest.skip(spec.missing)
    check(spec.cls, spec.config(), EXPECTED[family])


@pytest.mark.parametrize("case", BESIDE)
def test_roles_beside_the_zoo(case: str) -> None:
    cls, config, table = BESIDE[case]
    check(cls, config(), table)


def check(cls: str, config: Any, table: dict[str, object]) -> None:
    meta_model = meta_model_of(config.to_dict() | {"architectures": [cls]})
    assert meta_model is not None
    for name, role in classify(meta_model).items():
        path = max((p for p in table if name == p or name.startswith(p + ".")), key=len, default=None)
        assert path is not None, f"{name} is in no line of the table"
        if table[path] == L:
            assert role in LANGUAGE_ROLES, (name, role)
            _check_language_role(name, role)
        else:
            assert role is table[path], (name, role)


def _check_language_role(name: str, role: Role) -> None:
    owner, _, leaf = name.rpartition(".")
    part = owner.rpartition(".")[2]
    if part == "lm_head":
        assert role is Role.LM_HEAD, name
    elif part == "shared" or part.startswith(("embed_", "segment_emb")):
        assert role is Role.EMBEDDINGS, (name, role)
    elif "norm" in part.lower():
        assert role is Role.NORMS, (name, role)
    elif leaf == "bias":
        assert role in (Role.BIASES, Role.LM_HEAD), (name, role)
    elif part.endswith("_proj") or part.startswith(("fc", "up_", "down_", "gate_")):
        assert role in (Role.LANGUAGE_MODEL, Role.NORMS), (name, role)


def test_text_only_model_is_all_language() -> None:
    config = transformers.Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8
    )
    meta_model = meta_model_of(config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]})
    assert meta_model is not None
    roles = classify(meta_model)
    assert set(roles.values()) == {Role.LANGUAGE_MODEL, Role.EMBEDDINGS, Role.LM_HEAD, Role.NORMS}
    assert roles["model.layers.0.self_attn.q_norm.weight"] is Role.NORMS


@pytest.mark.parametrize(
    ("name", "role"),
    [  # tensor names of published checkpoints whose code is not transformers' own
        ("vision_model.encoder.layers.3.attn.qkv.weight", Role.VISION_TOWER),
        ("vision_model.embeddings.class_embedding", Role.VISION_TOWER),
        ("mlp1.1.weight", Role.PROJECTOR),
        ("language_model.model.layers.0.self_attn.q_proj.weight", Role.LANGUAGE_MODEL),
        ("language_model.model.layers.0.self_attn.q_proj.bias", Role.BIASES),
        ("language_model.model.layers.0.input_layernorm.weight", Role.NORMS),
        ("language_model.model.norm.weight", Role.NORMS),
        ("language_model.model.tok_embeddings.weight", Role.EMBEDDINGS),
        ("language_model.output.weight", Role.LM_HEAD),
        ("language_model.lm_head.weight", Role.LM_HEAD),
        ("resampler.attn.in_proj_weight", Role.PROJECTOR),
        ("vpm.encoder.layers.0.mlp.fc1.weight", Role.VISION_TOWER),
        ("apm.layers.0.fc1.weight", Role.AUDIO_TOWER),
        ("audio_projection_layer.linear1.weight", Role.PROJECTOR),
    ],
)
def test_roles_by_name(name: str, role: Role) -> None:
    assert classify_names([name]) == {name: role}
