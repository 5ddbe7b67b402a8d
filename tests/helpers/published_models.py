"""What the hub holds of the models that recipes name, as far as a merge can see: configs, tensor names and shapes."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from end_to_end import fresh
from sparse_checkpoints import sparse_checkpoint, write_sparse

_QWEN2_7B: dict[str, Any] = {  # the decoder of Qwen2-7B, Qwen2.5-7B and the VL models on top of either
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_MROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}

# Qwen/Qwen2-VL-7B, config.json: flat, as before transformers 4.52
QWEN2_VL_7B = {
    **_QWEN2_7B,
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "rope_scaling": _MROPE,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}

# Qwen/Qwen2.5-VL-7B-Instruct, config.json: flat too
QWEN2_5_VL_7B = {
    **_QWEN2_7B,
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "max_position_embeddings": 128000,
    "rope_scaling": _MROPE,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}

# Qwen/Qwen2.5-7B-Instruct, config.json
QWEN2_5_7B = {**_QWEN2_7B, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}

# OpenGVLab/InternVL2_5-1B: InternViT-300M (24 layers) and Qwen2.5-0.5B-Instruct (24 layers), in InternVL's own format.
# Names and shapes are those of the modelling code that the checkpoint brings; lm_head is stored, not tied.
INTERNVL2_5_1B: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "auto_map": {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    },
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "force_image_size": 448,
    "select_layer": -1,
    "template": "internvl2_5",
    "torch_dtype": "bfloat16",
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151674,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
    },
}

# llava-hf/llava-1.5-7b-hf, config.json
LLAVA_1_5_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}

# Qwen/Qwen3-VL-2B-Instruct, config.json
QWEN3_VL_2B: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "in_channels": 3,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}

CAPABILITIES = ("VQA", "Geometry", "Chart", "OCR", "Grounding")
# The ids in the released code of the paper (github.com/WalkerWorldPeace/MLLMerging), of the text recipe, and of the
# suites (github.com/Sphere-AI-Lab/OrthoMerge, AuroraZengfh/RobustMerge, MedAI-T/MergeMedBench).
HUB: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-7B": QWEN2_VL_7B,
    **{f"yongxianwei/Qwen2-VL-7B-{name}": QWEN2_VL_7B for name in CAPABILITIES},
    "OpenGVLab/InternVL2_5-1B": INTERNVL2_5_1B,
    **{f"yongxianwei/InternVL2_5-1B_{name}": INTERNVL2_5_1B for name in CAPABILITIES},
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN2_5_VL_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN2_5_7B,
    "open-thoughts/OpenThinker-7B": QWEN2_5_7B,  # a fine-tune of the former
    "allenai/olmOCR-2-7B-1025": QWEN2_5_VL_7B,
    "sensenova/SenseNova-SI-1.1-Qwen2.5-VL-7B": QWEN2_5_VL_7B,
    "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL": QWEN2_5_VL_7B,
    "llava-hf/llava-1.5-7b-hf": LLAVA_1_5_7B,
    "Qwen/Qwen3-VL-2B-Instruct": QWEN3_VL_2B,
}
MERGEBENCH_TASKS = ("ScienceQA", "VizWiz", "ImageNet", "VQAv2", "REC", "IconQA", "flickr30k", "OCRVQA")
MEDICAL_PICTURES = ("CT", "MRI", "XRay", "Ultrasound", "Dermoscopy", "Fundus", "OCT", "Microscopy")
# adapter -> its base, how its names begin, and what was trained whole beside it: names and shapes
ADAPTERS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    **{
        f"AuroraZengfh/LLaVA_7B_lora_r16_{task}": (
            "llava-hf/llava-1.5-7b-hf",
            "base_model.model.model.layers",  # of LLaVA's own code, as is the projector's
            {
                "base_model.model.model.mm_projector.0.weight": (4096, 1024),
                "base_model.model.model.mm_projector.0.bias": (4096,),
                "base_model.model.model.mm_projector.2.weight": (4096, 4096),
                "base_model.model.model.mm_projector.2.bias": (4096,),
            },
        )
        for task in MERGEBENCH_TASKS
    },
    **{
        f"MergeMedBench/Qwen3-VL-2B-Instruct-{medium}-LoRA": (
            "Qwen/Qwen3-VL-2B-Instruct",
            "base_model.model.model.language_model.layers",
            {},
        )
        for medium in MEDICAL_PICTURES
    },
}


def linear_shapes(name: str, rows: int, columns: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def internvl_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name on disk, shape) of every tensor of an InternVL checkpoint in its original format."""
    vision, text = config["vision_config"], config["llm_config"]
    width, patch = vision["hidden_size"], vision["patch_size"]
    yield "vision_model.embeddings.class_embedding", (1, 1, width)
    yield "vision_model.embeddings.position_embedding", (1, (vision["image_size"] // patch) ** 2 + 1, width)
    yield "vision_model.embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield "vision_model.embeddings.patch_embedding.bias", (width,)
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.encoder.layers.{index}"
        yield from linear_shapes(f"{layer}.attn.qkv", 3 * width, width)
        yield from linear_shapes(f"{layer}.attn.proj", width, width)
        yield from linear_shapes(f"{layer}.mlp.fc1", vision["intermediate_size"], width)
        yield from linear_shapes(f"{layer}.mlp.fc2", width, vision["intermediate_size"])
        for norm in ("norm1", "norm2"):
            yield f"{layer}.{norm}.weight", (width,)
            yield f"{layer}.{norm}.bias", (width,)
        yield f"{layer}.ls1", (width,)
        yield f"{layer}.ls2", (width,)
    hidden, unshuffled = text["hidden_size"], 4 * width
    yield "mlp1.0.weight", (unshuffled,)
    yield "mlp1.0.bias", (unshuffled,)
    yield from linear_shapes("mlp1.1", hidden, unshuffled)
    yield from linear_shapes("mlp1.3", hidden, hidden)
    yield "language_model.model.embed_tokens.weight", (text["vocab_size"], hidden)
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    for index in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{index}"
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            yield from linear_shapes(f"{layer}.self_attn.{name}_proj", rows, hidden)
        yield from linear_shapes(f"{layer}.self_attn.o_proj", hidden, hidden, bias=False)
        yield from linear_shapes(f"{layer}.mlp.gate_proj", text["intermediate_size"], hidden, bias=False)
        yield from linear_shapes(f"{layer}.mlp.up_proj", text["intermediate_size"], hidden, bias=False)
        yield from linear_shapes(f"{layer}.mlp.down_proj", hidden, text["intermediate_size"], bias=False)
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield "language_model.model.norm.weight", (hidden,)
    yield "language_model.lm_head.weight", (text["vocab_size"], hidden)


@functools.cache
def without_values(config_json: str) -> Path:
    """The checkpoint of a config (as JSON), without values."""
    config, path = json.loads(config_json), fresh()
    if config["model_type"] != "internvl_chat":
        return sparse_checkpoint(path, config)
    path.mkdir()
    (path / "config.json").write_text(config_json)
    write_sparse(path / "model.safetensors", {n: (s, torch.bfloat16) for n, s in internvl_shapes(config)})
    return path


def lora_shapes(text: dict[str, Any], prefix: str, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the factors of an adapter on all matrices of a decoder's layers."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    head = text.get("head_dim", width // text["num_attention_heads"])
    queries, keys = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    shapes = {"self_attn.q_proj": (queries, width), "self_attn.o_proj": (width, queries)}
    shapes |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (keys, width))
    shapes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (inner, width))
    shapes |= {"mlp.down_proj": (width, inner)}
    for layer in range(text["num_hidden_layers"]):
        for module, (rows, columns) in shapes.items():
            yield f"{prefix}.{layer}.{module}.lora_A.weight", (rank, columns)
            yield f"{prefix}.{layer}.{module}.lora_B.weight", (rows, rank)


@functools.cache
def adapter_without_values(name: str) -> Path:
    """An adapter of rank 16 without values. Its files are safetensors, of which a hole is one."""
    base, prefix, whole = ADAPTERS[name]
    path = fresh(name.replace("/", "--"))
    path.mkdir()
    factors = dict(lora_shapes(HUB[base]["text_config"], prefix, 16))
    write_sparse(path / "adapter_model.safetensors", {n: (s, torch.bfloat16) for n, s in factors.items()})
    if whole:
        write_sparse(path / "non_lora_trainables.safetensors", {n: (s, torch.bfloat16) for n, s in whole.items()})
    trained_on = "./models/llava-v1.5-7b" if whole else str(full_size(base))
    about = {"base_model_name_or_path": trained_on, "peft_type": "LORA", "r": 16, "lora_alpha": 32}
    (path / "adapter_config.json").write_text(json.dumps({**about, "target_modules": ["q_proj", "v_proj"]}))
    return path


@functools.cache
def full_size(name: str) -> Path:
    """What a hub id, or `base+adapter`, stands for, without values. Checkpoints of one config share their files."""
    if "+" in name:
        base, adapter = name.split("+")
        return Path(f"{full_size(base)}+{adapter_without_values(adapter)}")
    return linked(without_values(json.dumps(HUB[name])), name.replace("/", "--"))


def linked(source: Path, name: str = "checkpoint") -> Path:
    path = fresh(name)
    path.mkdir()
    for file in source.iterdir():
        os.link(file, path / file.name)
    return path
