"""The way by an adapter: a LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on the merged model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from peft import LoraConfig, get_peft_model
from torch import Tensor

from mergekit_mm.align.inputs import in_model
from mergekit_mm.align.job import FOLDER, Job
from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.execution.settings import from_environment
from mergekit_mm.merge import run_multimodal_merge


class AdapterWay:
    """A new LoRA on some linear layers of a model. It begins at zero: the model is unchanged until the first step.

    Its scaling is 1 (alpha is the rank), and its factors are in float32 whatever the dtype of the model. It leaves the
    span of the experts' deltas: what it learns is post-training without labels, and no weighted merge.
    """

    def __init__(self, lm: MLLM, layers: Sequence[str], rank: int, seed: int) -> None:
        """layers: the paths of the adapted layers in the model. seed: of the factors A, which begin at random."""
        self.lm = lm
        lm.model.requires_grad_(False)
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(layers))
        self.model = get_peft_model(lm.model, config)
        self.parameters: list[Tensor] = [each for each in self.model.parameters() if each.requires_grad]
        self._start = [each.detach().clone() for each in self.parameters]

    def apply(self) -> None:
        """Nothing: the model reads the factors themselves."""

    def distance(self) -> Tensor:
        """The mean distance of the factors' entries from their start."""
        pairs = zip(self.parameters, self._start, strict=True)
        total = torch.stack([(each - start).abs().sum() for each, start in pairs]).sum()
        return total / sum(each.numel() for each in self.parameters)


def prepare(job: Job, lm: MLLM) -> AdapterWay:
    """The way for a loaded start.

    Raises:
        MergeError: the merge changes no linear layer.
    """
    way = AdapterWay(lm, linear_layers(lm, job.matrices), job.settings.rank, job.settings.seed)
    job.tell(f"adapter of rank {job.settings.rank}: {sum(each.numel() for each in way.parameters):,} numbers")
    return way


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


@dataclass(frozen=True)
class Adapter:
    """What was learnt: an adapter as PEFT writes it, in a directory."""

    directory: Path
    how: str

    @classmethod
    def of(cls, way: AdapterWay, job: Job) -> Adapter:
        """The adapter that a way has now."""
        directory = job.folder / "adapter"
        shutil.rmtree(directory, ignore_errors=True)
        way.model.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # an empty model card
        # PEFT names the folder of the start, which is gone afterwards. A folded adapter is of no model that stays.
        config = directory / "adapter_config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = None if job.settings.fold else str(job.out)
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        done = f"folded in; it is in `{FOLDER}/` too" if job.settings.fold else f"is in `{FOLDER}/`, for use with this"
        return cls(directory, f"A LoRA of rank {job.settings.rank} on the merged model was trained, and {done}.")

    def write(self, job: Job, out: Path) -> None:
        """Write the start with the adapter folded in, or as it is; the adapter beside it, and the start's recipe."""
        if job.settings.fold:
            fold(job.start, self.directory, out, job.quiet)
            for name in ("README.md", "mergekit_config.yml"):
                if (job.start / name).is_file():
                    shutil.copyfile(job.start / name, out / name)
        else:
            shutil.copytree(job.start, out, dirs_exist_ok=True)
        shutil.copytree(self.directory, out / FOLDER)
        recipe = out / "mergekit_config.yml"
        if job.settings.fold and recipe.is_file():
            comment = (
                f"# The start of an alignment: to the model that this makes, the adapter in {FOLDER}/ was added.\n"
            )
            recipe.write_text(comment + recipe.read_text(encoding="utf-8"), encoding="utf-8")


def fold(start: Path, adapter: Path, out: Path, options: MergeOptions) -> None:
    """Write the model `start` with an adapter folded into it, each weight rounded once to the dtype that it has."""
    config: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": str(start),
        "models": [{"model": f"{start}+{adapter}", "parameters": {"weight": 1.0}}],
    }
    quiet = options.model_copy(update={"write_model_card": False})
    settings = replace(from_environment(), keeps=False)
    run_multimodal_merge(MergeConfiguration.model_validate(config), str(out), quiet, None, settings)
