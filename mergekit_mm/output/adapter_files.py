"""One PEFT adapter from merged factors: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from mergekit_mm.checkpoints.adapters.whole import shortened
from mergekit_mm.numerics.low_rank import Factors

# Fields of adapter_config.json that are written even with PEFT's default, for readers that are not PEFT. All are known
# since PEFT 0.9. Other fields are left out if they have their defaults, as PEFT refuses fields of later versions.
_ALWAYS = (
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "modules_to_save"),
    *("lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora", "init_lora_weights"),
    *("layers_to_transform", "layers_pattern"),
)


def write_adapter(
    directory: Path,
    factors: Mapping[str, Factors],
    embeddings: Collection[str],
    modules: Collection[str],
    base: str,
    model_class: type | None,
    dtype: torch.dtype,
    whole: Mapping[str, torch.Tensor],
    saved: Collection[str],
) -> None:
    """Write factors and whole tensors as one PEFT adapter. Its scaling is 1 everywhere: alpha is the rank.

    The `r` of the adapter's config is the largest rank, as servers reserve memory for that.

    Args:
        factors: module path in memory -> its factors (out, r), (r, in).
        embeddings: the paths in `factors` that are embeddings, with factors (vocabulary, r), (r, width).
        modules: the paths of all modules of the model. A short target name is written where it fits no other module.
        base: the name of the model that the adapter belongs to.
        model_class: the class of that model, with which PEFT's AutoPeftModel can load it; None if it is not known.
        dtype: the dtype of the written factors.
        whole: name in memory -> a tensor that replaces the base's, written in its own dtype: all tensors of the modules
            `saved`, and biases of other linear layers.
        saved: the paths of the modules that are written whole.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path, (b, a, _) in factors.items():
        key = f"base_model.model.{path}"
        if path in embeddings:
            tensors[f"{key}.lora_embedding_A"] = b.T.to(dtype).contiguous()
            tensors[f"{key}.lora_embedding_B"] = a.T.to(dtype).contiguous()
        else:
            tensors[f"{key}.lora_A.weight"] = a.to(dtype)
            tensors[f"{key}.lora_B.weight"] = b.to(dtype)
    has_bias = False
    for name, tensor in whole.items():
        owner, _, kind = name.rpartition(".")
        is_saved = name.startswith(tuple(f"{path}." for path in saved))
        has_bias |= not is_saved
        # An adapted layer of PEFT holds the original layer under the name `base_layer`.
        peft_name = f"{owner}.base_layer.{kind}" if not is_saved and owner in factors else name
        tensors[f"base_model.model.{peft_name}"] = tensor.contiguous().clone()  # Views of one tensor share its storage.
    ranks = {path: own.rank for path, own in factors.items()}
    largest = max(ranks.values())
    smaller = {path: rank for path, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        target_modules=_targets(factors, modules),
        modules_to_save=shortened(saved, modules) or None,
        bias="all" if has_bias else "none",
        base_model_name_or_path=base,
        auto_mapping=model_class
        and {"base_model_class": model_class.__name__, "parent_library": model_class.__module__},
        inference_mode=True,
    )
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    defaults, content = LoraConfig().to_dict(), config.to_dict()
    content = {key: content[key] for key in content if key in _ALWAYS or content[key] != defaults[key]}
    content["target_modules"] = sorted(content["target_modules"])
    (directory / "adapter_config.json").write_text(json.dumps(content, indent=2, default=_json_value) + "\n")


def _targets(adapted: Collection[str], modules: Collection[str]) -> list[str]:
    """The last part of an adapted module's name if all modules with that part are adapted; else its whole name."""
    unadapted = {path.rpartition(".")[2] for path in modules if path not in adapted}
    return sorted({path if (last := path.rpartition(".")[2]) in unadapted else last for path in adapted})


def _json_value(value: object) -> object:
    """A value that JSON cannot hold, as one that it can."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
