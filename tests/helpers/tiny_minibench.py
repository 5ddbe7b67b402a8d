"""Material and models of the benchmark in miniature that are made in a second, and have learned nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.common.training import save, with_lora
from examples.minibench.material import write
from examples.minibench.model import Size, make_model, make_processor, make_tokenizer

SPLITS = ("train", "validation", "test", "calibration")


def make_models(folder: Path, asked: int, experts: int) -> None:
    """Write `material`, a random `base`, and experts a step away from it, such as `full_0` and `lora_0`.

    asked: pictures of each capability and split.
    """
    write(folder / "material", dict.fromkeys(SPLITS, asked), seed=0)
    torch.manual_seed(0)
    tokenizer = make_tokenizer(["What is in the picture?"] * 5)
    size = Size(width=32, layers=1, mlp=32, vision_width=32, vision_layers=1)
    processor = make_processor(tokenizer, size)
    base = make_model(tokenizer, size)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    save(base, folder / "base", processor)
    for number in range(experts):
        for way in ("full", "lora"):
            model = make_model(tokenizer, size)
            model.load_state_dict(state)
            trained = with_lora(model, 2) if way == "lora" else model
            for name, parameter in trained.named_parameters():
                if "language_model" in name and "_proj" in name and parameter.requires_grad:
                    parameter.data += 0.05 * torch.randn_like(parameter)
            save(trained, folder / f"{way}_{number}", *([] if way == "lora" else [processor]))
