"""An opened LoRA adapter: what it changes of each tensor. Values are read one tensor at a time.

Names are those of the model that was trained: `<module path>.weight`, without PEFT's prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_mm.checkpoints.disk import unpickled
from mergekit_mm.checkpoints.mapped import fetched, opened
from mergekit_mm.checkpoints.weight_files import WeightFile
from mergekit_mm.errors import SystemRefusal
from mergekit_mm.numerics.low_rank import lora_delta, widened, with_row_lengths
from mergekit_mm.numerics.task_vector import TaskVector


@dataclass
class Change:
    """What an adapter does to one tensor, as keys of the adapter's files."""

    a: str | None = None
    b: str | None = None
    bias: str | None = None  # the bias of lora_B, which is added to the layer's
    magnitude: str | None = None  # DoRA's lengths of rows
    replacement: str | None = None  # the whole tensor
    scaling: float = 1.0
    is_embedding: bool = False
    is_bare: bool = False  # the factors belong to a parameter without a module, whose name and scaling the model tells


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter directory. Only the headers of its files have been read."""

    name: str  # the user's name for it, for messages
    directory: Path
    config: Mapping[str, Any]
    changes: Mapping[str, Change] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)  # key in the file -> shape
    weights: Path | None  # the adapter's own file; None for a directory of tensors that were trained whole
    trained: Mapping[str, WeightFile] = field(repr=False)  # key -> the file beside the adapter that holds the tensor

    @property
    def base(self) -> str | None:
        """The model that the adapter says it was trained on."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def files(self) -> list[Path]:
        """All files that its tensors are read from."""
        own = [self.weights] if self.weights else []
        return [*own, *dict.fromkeys(file.path for file in self.trained.values())]

    def trained_in(self, name: str) -> WeightFile | None:
        """The file beside the adapter that holds a tensor whole; None for a tensor of the adapter's own file."""
        return self.trained.get(self.changes[name].replacement or "")

    @cached_property
    def _pickles(self) -> dict[Path, Mapping[str, Any]]:
        return {}

    def _read(self, key: str) -> Tensor:
        beside = self.trained.get(key)
        path = beside.path if beside else self.weights
        assert path is not None
        if beside:
            key = _within(beside, key)
        try:
            if path.suffix != ".safetensors":
                if path not in self._pickles:
                    self._pickles[path] = unpickled(path)
                held = self._pickles[path]
                tensor: Tensor = (held[beside.within] if beside and beside.within else held)[key]
                return tensor.detach()
            with opened(path) as file:
                return fetched(path, key, file.get_tensor)
        except SystemRefusal:
            raise
        except Exception as error:  # the file is not what it was when the merge was planned
            raise SystemRefusal(f"{key} cannot be read from {path}: {error}") from error

    def same_values(self, key: str, other: str) -> bool:
        """Whether two keys of its files stand for the same values."""
        return self.shapes[key] == self.shapes[other] and torch.equal(self._read(key), self._read(other))

    def holds_the_same(self, name: str, other: str) -> bool:
        """Whether two of its names hold one tensor whole, with the same values."""
        ours, theirs = self.changes[name].replacement, self.changes[other].replacement
        return ours is not None and theirs is not None and self.same_values(ours, theirs)

    def is_zero(self, key: str) -> bool:
        """Whether a stored tensor holds nothing but zeros."""
        return not bool(self._read(key).any())

    def needs_base(self, name: str) -> bool:
        """Whether the delta of a tensor can be computed only with the base's values."""
        change = self.changes[name]
        return change.magnitude is not None or change.replacement is not None

    def replaces(self, name: str) -> bool:
        """Whether the adapter holds a tensor whole, such as one of PEFT's `modules_to_save`."""
        return self.changes[name].replacement is not None

    def replacement(self, name: str) -> Tensor:
        """A tensor that the adapter holds whole, in the dtype of its file."""
        key = self.changes[name].replacement
        assert key is not None
        return self._read(key)

    def rank(self, name: str) -> int | None:
        """The rank of the factors of a matrix; None for a tensor that is no matrix, or to which more is done."""
        change = self.changes[name]
        if self.needs_base(name) or change.is_bare or change.a is None or len(self.shapes[change.a]) != 2:
            return None
        return self.shapes[change.a][0]

    def shape(self, name: str, base_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a changed tensor must have; `base_shape` where the adapter says nothing of it."""
        change = self.changes[name]
        key = change.replacement or change.bias
        if key is not None:
            return self.shapes[key]
        if change.a is None or change.b is None:
            return base_shape
        a, b = self.shapes[change.a], self.shapes[change.b]
        if change.is_embedding or self.config.get("fan_in_fan_out"):
            return (a[1], b[0])
        return (b[0], *a[1:])

    def task_vector(self, name: str, base: Tensor | None) -> TaskVector:
        """The change of a tensor, in float32 or wider: factors (out, r) and (r, in), with the scaling in the left one.

        Convolutions, biases and whole tensors come dense. `base` is the tensor that was adapted; only where
        `needs_base` says so is it read.
        """
        change = self.changes[name]
        if change.bias is not None and change.replacement is None:
            return TaskVector(self._wide(change.bias) * change.scaling)
        factors = self._factors(change) if change.a is not None else None
        if not self.needs_base(name):
            assert factors is not None
            return factors
        assert base is not None
        wide = base.to(torch.promote_types(base.dtype, torch.float32))
        tuned = self._wide(change.replacement) if change.replacement else wide
        if factors is not None:
            if change.replacement and torch.equal(tuned.to(wide), wide):
                return factors  # PEFT saves the embeddings that it adapts whole, changed or not
            tuned = tuned + factors.dense(tuned.dtype)
        if change.bias is not None:  # the bias of lora_B is added to a trained bias of the layer itself
            tuned = tuned + self._wide(change.bias) * change.scaling
        if change.magnitude is not None:
            tuned = with_row_lengths(tuned, self._wide(change.magnitude))
        return TaskVector(tuned, base=base)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """B and A of a tensor without the scaling, as the file holds them, in float32 or wider."""
        change = self.changes[name]
        assert change.a is not None
        assert change.b is not None
        return self._wide(change.b), self._wide(change.a)

    def factor_shapes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B of a tensor."""
        change = self.changes[name]
        assert change.a is not None
        assert change.b is not None
        return self.shapes[change.a], self.shapes[change.b]

    def _factors(self, change: Change) -> TaskVector:
        assert change.a is not None
        assert change.b is not None
        transposed = change.is_embedding or bool(self.config.get("fan_in_fan_out"))
        return lora_delta(self._wide(change.a), self._wide(change.b), change.scaling, transposed)

    def _wide(self, key: str) -> Tensor:
        return widened(self._read(key))


def _within(file: WeightFile, key: str) -> str:
    return key.removeprefix(f"{file.path.name}:")
