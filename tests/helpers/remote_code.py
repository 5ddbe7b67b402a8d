"""A tiny InternVL as its original repository publishes it: names of its own on disk, and modelling code beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import zoo
from end_to_end import Tensors, altered, checkpoint


def remote_code_names(found: Tensors) -> Tensors:
    """A tiny InternVL under the names of its original repository, with its fused qkv."""
    renamed: Tensors = {}
    for name, tensor in found.items():
        new = name.replace("vision_tower.encoder.layer.", "vision_model.encoder.layers.")
        new = new.replace("vision_tower.embeddings.", "vision_model.embeddings.")
        new = new.replace("multi_modal_projector.layer_norm", "mlp1.0").replace(
            "multi_modal_projector.linear_1", "mlp1.1"
        )
        new = new.replace("multi_modal_projector.linear_2", "mlp1.3")
        if ".attention.q_proj." in new:
            parts = [found[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            renamed[new.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        elif not (".attention.k_proj." in new or ".attention.v_proj." in new):
            renamed[new] = tensor
    return renamed


REMOTE_CONFIG: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "auto_map": {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    },
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "select_layer": -1,
    "template": "internvl2_5",
    "torch_dtype": "float32",
    "llm_config": zoo.text("qwen2", architectures=["Qwen2ForCausalLM"], torch_dtype="float32"),
    "vision_config": {"model_type": "intern_vit_6b", "architectures": ["InternVisionModel"], "hidden_size": 32},
}
PYTHON_FILES = ("configuration_internvl_chat.py", "modeling_internvl_chat.py", "conversation.py")


def remote_code_checkpoint(tag: str) -> Path:
    """A checkpoint whose model is code of its own; that code must not run."""
    path = altered(checkpoint("internvl", "plain", tag), remote_code_names)
    (path / "config.json").write_text(json.dumps(REMOTE_CONFIG, indent=2))
    for name in PYTHON_FILES:
        (path / name).write_text(f'raise SystemExit("{name} of {tag} was run")\n')
    return path
