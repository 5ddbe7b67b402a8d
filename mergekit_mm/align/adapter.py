"""The way by an adapter: a LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on the merged model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from mergekit_mm.align.inputs import in_model
from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.mllm import MLLM


class AdapterWay:
    """A new LoRA on some linear layers of a model. It begins at zero: the model is unchanged until the first step.

    Its scaling is 1 (alpha is the rank). It leaves the span of the experts' deltas: what it learns is post-training
    without labels, and no weighted merge.
    """

    def __init__(self, lm: MLLM, layers: Sequence[str], rank: int, seed: int) -> None:
        """layers: the paths of the adapted layers in the model. seed: of the factors A, which begin at random."""
        self.lm = lm
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(layers))
        self.model = get_peft_model(lm.model, config)
        self.parameters: list[torch.Tensor] = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]

    def apply(self) -> None:
        """Nothing: the model reads the factors themselves."""

    def write(self, directory: Path) -> None:
        """Write the adapter as PEFT does."""
        self.model.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # an empty model card


def linear_layers(lm: MLLM, tensors: Sequence[str]) -> list[str]:
    """The paths in a loaded model of the linear layers whose weights are among `tensors`, by their names in memory.

    MergeError: there are none.
    """
    modules = dict(lm.model.named_modules())
    found = []
    for name in tensors:
        path = in_model(lm, name).removesuffix(".weight")
        if name.endswith(".weight") and isinstance(modules.get(path), torch.nn.Linear):
            found.append(path)
    if not found:
        raise MergeError("This merge changes no linear layer that an adapter could adapt.")
    return found
