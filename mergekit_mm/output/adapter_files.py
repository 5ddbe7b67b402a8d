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

# Written even if they are PEFT's defaults, for readers that are not PEFT. Other fields are left out at their defaults,
# as versions of PEFT refuse those that they do not know: these here are known since PEFT 0.9.
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
    """Write the factors of each module as an adapter whose scaling is 1 everywhere (alpha = rank), and what is whole.

    factors: module path in memory -> its factors (out, r), (r, in). embeddings: those of them that are embeddings, with
    factors (vocabulary, r), (r, width). modules: the paths of all modules of the model, so that short target names are
    used where they mean the same. base, model_class: what the adapter says it belongs to; with a class PEFT's
    AutoPeftModel finds the rest. `r` is the largest rank, as servers make room for that. dtype: of the factors. whole:
    name in memory -> a tensor that takes the place of the base's, in its own dtype: all tensors of the modules `saved`,
    and biases of other linear layers.
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
        inside = name.startswith(tuple(f"{path}." for path in saved))
        has_bias |= not inside
        # beneath an adapted layer PEFT keeps the layer itself under this name
        wrapped = f"{owner}.base_layer.{kind}" if not inside and owner in factors else name
        tensors[f"base_model.model.{wrapped}"] = tensor.contiguous().clone()  # parts of one tensor share its storage
    ranks = {path: found.rank for path, found in factors.items()}
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
    usual, content = LoraConfig().to_dict(), config.to_dict()
    content = {key: content[key] for key in content if key in _ALWAYS or content[key] != usual[key]}
    content["target_modules"] = sorted(content["target_modules"])
    (directory / "adapter_config.json").write_text(json.dumps(content, indent=2, default=_plain) + "\n")


def _targets(chosen: Collection[str], modules: Collection[str]) -> list[str]:
    """The last part of a module's name where all modules that end so are meant, else its whole name."""
    kept = {path.rpartition(".")[2] for path in modules if path not in chosen}
    return sorted({path if (last := path.rpartition(".")[2]) in kept else last for path in chosen})


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
