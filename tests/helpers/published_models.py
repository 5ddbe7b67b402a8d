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

CAPABILITIES = ("VQA", "Geometry", "Chart", "OCR", "Grounding")
# the ids in the released code of the paper (github.com/WalkerWorldPeace/MLLMerging), and those of the text recipe
HUB: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-7B": QWEN2_VL_7B,
    **{f"yongxianwei/Qwen2-VL-7B-{name}": QWEN2_VL_7B for name in CAPABILITIES},
    "OpenGVLab/InternVL2_5-1B": INTERNVL2_5_1B,
    **{f"yongxianwei/InternVL2_5-1B_{name}": INTERNVL2_5_1B for name in CAPABILITIES},
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN2_5_VL_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN2_5_7B,
    "open-thoughts/OpenThinker-7B": QWEN2_5_7B,  # a fine-tune of the former
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


@functools.cache
def full_size(name: str) -> Path:
    """The checkpoint that a hub id stands for, without values. Those of one config share their files."""
    return linked(without_values(json.dumps(HUB[name])), name.replace("/", "--"))


def linked(source: Path, name: str = "checkpoint") -> Path:
    path = fresh(name)
    path.mkdir()
    for file in source.iterdir():
        os.link(file, path / file.name)
    return path
