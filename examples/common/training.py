"""What the training scripts share: the optimiser's loop, LoRA on a language model, and how models are written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm

LINEAR_LAYERS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Stage:
    """`steps` optimiser steps on `batch` examples each, at the peak learning rate `rate`."""

    steps: int
    batch: int
    rate: float


def optimise(
    parameters: Iterable[torch.nn.Parameter], stage: Stage, label: str, loss: Callable[[], torch.Tensor]
) -> list[tuple[int, float]]:
    """Minimise `loss`, called once per step, by AdamW. Returns each twentieth step with its loss.

    The learning rate warms up for 10 % of the steps, then falls as a cosine to 5 % of its peak; gradients are clipped
    to a norm of 1. Only parameters that require gradients are trained.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
    bar = tqdm(range(stage.steps), desc=label, unit="step", mininterval=2)
    course = []
    for step in bar:
        warm = min(1.0, (step + 1) / (0.1 * stage.steps))
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * step / stage.steps)))
        value = loss()
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if step % 20 == 0:
            course.append((step, value.item()))
            bar.set_postfix(loss=f"{value.item():.3f}")
    return course


def with_lora(model: Any, rank: int) -> Any:
    """The model with a new LoRA adapter on every linear layer of its language model; alpha is twice the rank."""
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR_LAYERS))


def save(model: Any, directory: Path, *beside: Any) -> None:
    """Write a model or an adapter in bfloat16, and with it `beside`: its processor or tokenizer."""
    for name in ("text_config", "vision_config", "audio_config"):
        if (part := getattr(model.config, name, None)) is not None:
            part.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(directory)
    for thing in beside:
        thing.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT writes an empty model card


def missing_models(out: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the names of models that are not in `out` yet, and print how long each took to make."""
    for name in names:
        if any((out / name).glob("*.safetensors")):
            print(f"{name}: exists, skipped")
            continue
        started = time.monotonic()
        yield name
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
