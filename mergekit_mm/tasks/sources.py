"""The opened inputs that tasks read from: models with the readers of their files, and adapters on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import LazyTensorLoader

from mergekit_mm.checkpoints.adapters.binding import Adaptation
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.expert_stacks import Part, is_one_on_disk
from mergekit_mm.checkpoints.mapped import fetched
from mergekit_mm.checkpoints.values import read_group
from mergekit_mm.errors import SystemRefusal
from mergekit_mm.plan.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Source:
    """One model without adapters, and the reader of its files. Tasks compare sources by identity."""

    checkpoint: Checkpoint
    loader: LazyTensorLoader

    def group(self, name: str, device: str | None, part: Part | None = None) -> dict[str, torch.Tensor]:
        """The group of a tensor: all tensors that are stored together with it, by their names in memory.

        part: the experts that are read of a stack; None for the whole.

        Raises:
            SystemRefusal: a file has changed since the merge was planned, or mergekit's reader cannot read it.
        """

        def read(tensor: DiskTensor) -> torch.Tensor:
            if tensor.stored is None:
                return self._read(tensor.name, tensor.file, device, within)
            return tensor.stored.value(lambda key: self._read(key, tensor.file, device, within))

        within = slice(*part) if part is not None and is_one_on_disk(self.checkpoint, name) else ...
        return read_group(self.checkpoint, name, read, part)

    def _read(self, key: str, file: str, device: str | None, within: Any = ...) -> torch.Tensor:
        path = self.checkpoint.directory / file
        try:
            return fetched(path, key, self.loader.get_tensor, within).to(device or "cpu")
        except SystemRefusal:
            raise
        except Exception as error:
            raise SystemRefusal(f"{key} cannot be read from {path}: {error}") from error


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter on the model of a source."""

    name: str  # of the input, in messages
    adaptation: Adaptation


@dataclass(frozen=True, eq=False)
class Sources:
    """Every input of a merge."""

    models: Mapping[ModelReference, Source]  # two adapters of one model share its source
    adapters: Mapping[ModelReference, Adapter]


def open_sources(inputs: Inputs, lazy_unpickle: bool) -> Sources:
    """The sources of all inputs. Only indexes of files are read. lazy_unpickle: as the option of mergekit."""
    shared: dict[ModelReference, Source] = {}
    models: dict[ModelReference, Source] = {}
    for model, checkpoint in inputs.checkpoints.items():
        plain = inputs.plain(model)
        if plain not in shared:
            loader = LazyTensorLoader.from_disk(str(checkpoint.directory), lazy_unpickle=lazy_unpickle)
            shared[plain] = Source(checkpoint, loader)
        models[model] = shared[plain]
    adapters = {model: Adapter(str(model), adaptation) for model, adaptation in inputs.adaptations.items()}
    return Sources(models, adapters)
