"""Adapters of zoo models, made by PEFT, and the checkpoints that PEFT merges them into."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import zoo
from checkpoints import Tensors, checkpoint, fresh, side_files


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Values for everything that an adapter trains, which PEFT leaves at the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            change = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data = (parameter.data * 1.1 if "magnitude" in name else parameter.data + change).to(parameter)


def adapted(family: str, seed: int, path: Path | None = None, **config: Any) -> tuple[Path, Path]:
    """An adapter of a zoo model, and the checkpoint that PEFT's merge_and_unload makes of the two, in float32."""
    base = path or checkpoint(family)
    cls = getattr(transformers, zoo.FAMILIES[family].cls)
    config = {"r": 4, "lora_alpha": 8, "target_modules": r".*(language_model|layers).*(q|v|o|up|down)_proj", **config}
    model = peft.get_peft_model(cls.from_pretrained(base, dtype=torch.float32), peft.LoraConfig(**config))
    randomise(model, seed)
    adapter = fresh(f"adapter_{seed}")
    model.save_pretrained(adapter)
    whole = fresh(f"merged_by_peft_{seed}")
    model.merge_and_unload().save_pretrained(whole)
    for name, content in side_files(base).items():
        (whole / name).write_bytes(content)
    return adapter, whole


@functools.cache
def pair(family: str) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """Two adapters that differ in rank, scaling and targets, each with its merged checkpoint."""
    second = {"r": 3, "lora_alpha": 5, "target_modules": r".*(language_model|layers).*(k|v|gate|down)_proj"}
    return adapted(family, 1), adapted(family, 2, **second, use_rslora=True)


def plus(base: Path, adapter: Path) -> Path:
    return Path(f"{base}+{adapter}")


def wide(found: Tensors) -> Tensors:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
