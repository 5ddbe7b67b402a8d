"""Adapters of zoo models, made by PEFT, and the checkpoints that PEFT merges them into."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import zoo
from end_to_end import Tensors, checkpoint, fresh, side_files
from safetensors.torch import save_file


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


Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def factors(modules: dict[str, tuple[int, int]], rank: int = 3, seed: int = 0) -> Factors:
    """Random B (out, rank) and A (rank, in) for modules of the shapes (out, in)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    return {name: (draw(rows, rank), draw(rank, columns)) for name, (rows, columns) in modules.items()}


def written_adapter(base: Path | str, found: Factors, prefix: str = "base_model.model.", **config: Any) -> Path:
    """An adapter with these factors under these names, whose scaling is 2."""
    path, rank = fresh("adapter"), next(iter(found.values()))[1].shape[0]
    path.mkdir()
    content = {
        f"{prefix}{name}.lora_{part}.weight": t
        for name, (b, a) in found.items()
        for part, t in zip("BA", (b, a), strict=True)
    }
    save_file({name: t.contiguous() for name, t in content.items()}, path / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in found})
    whole = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, **config}
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), **whole}))
    return path


def delta(found: Factors, name: str) -> torch.Tensor:
    """What `written_adapter` changes of a module."""
    b, a = found[name]
    return 2 * b.double() @ a.double()


def in_memory(path: Path, family: str) -> Tensors:
    """The state dict of a checkpoint as transformers loads it, in float64."""
    model = getattr(transformers, zoo.FAMILIES[family].cls).from_pretrained(path, dtype=torch.float32)
    return {name: t.double() if t.is_floating_point() else t for name, t in model.state_dict().items()}
