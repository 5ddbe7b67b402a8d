"""The open inputs of a merge, which tasks hold: their headers, their files, and the adapters on top of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import LazyTensorLoader

from mergekit_mm.checkpoints.adapters.binding import Adaptation
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.values import read_group
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Source:
    """One model without adapters. Tasks that read from the same one are compared by its identity."""

    checkpoint: Checkpoint
    loader: LazyTensorLoader

    def group(self, name: str, device: str | None) -> dict[str, torch.Tensor]:
        """All tensors, by their names in memory, that are stored together with the one of this name.

        Raises:
            MergeError: a file is not what it was when the merge was planned, or not for mergekit's reader.
        """

        def read(tensor: DiskTensor) -> torch.Tensor:
            if tensor.stored is None:
                return self._read(tensor.name, tensor.file, device)
            return tensor.stored.value(lambda key: self._read(key, tensor.file, device))

        return read_group(self.checkpoint, name, read)

    def _read(self, key: str, file: str, device: str | None) -> torch.Tensor:
        try:
            return self.loader.get_tensor(key, device=device or "cpu").detach()  # pickles may hold parameters
        except Exception as error:
            raise MergeError(f"{key} cannot be read from {self.checkpoint.directory / file}: {error}") from error


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter on the model of a source."""

    name: str  # of the input, for messages
    adaptation: Adaptation


@dataclass(frozen=True, eq=False)
class Sources:
    """Every input of a merge."""

    models: Mapping[ModelReference, Source]  # two adapters of one model share its source
    adapters: Mapping[ModelReference, Adapter]


def open_sources(inputs: Inputs, lazy_unpickle: bool) -> Sources:
    """Indexes are read; tensors are when tasks ask for them. lazy_unpickle: as mergekit's option."""
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
