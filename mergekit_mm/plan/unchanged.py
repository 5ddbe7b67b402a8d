"""Inputs that add nothing to a merge: copies of the base or of each other, and adapters that change nothing.

Tensors are compared by samples of a few thousand values each, and read whole only if all samples are equal and the
model is small. Most fine-tunes differ from their base in the first sample. Models of the hub for which only headers
were fetched are compared by the hub's hashes of their files.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference

from mergekit_mm.checkpoints.adapters.adapter import Adapter
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import DiskTensor, unpickled
from mergekit_mm.checkpoints.mapped import fetched, opened
from mergekit_mm.checkpoints.remote import same_content
from mergekit_mm.plan.inputs import Inputs, OmniInputs

_SAMPLED = 4096  # values of each tensor
_READ_WHOLE = 1 << 30  # bytes of a model up to which equal samples are followed by a look at everything


def unchanged(inputs: Inputs, has_base: bool) -> Iterator[str]:
    """A note on each input whose weights are those of another, and on each adapter that adds nothing.

    has_base: whether the merge is over a base model; else the first input only gives the layout.
    """
    without_effect = set()
    for model, adaptation in inputs.adaptations.items():
        if (why := _reason_without_effect(adaptation.adapter)) is not None:
            without_effect.add(model)
            yield f"{model.lora} adds nothing to the merge: {why}."
    if not isinstance(inputs, OmniInputs):  # Donors of one language model may well share it: each has other towers.
        yield from _equal_models(inputs, has_base)
    yield from _equal_adapters(inputs, without_effect)


# -- adapters ---------------------------------------------------------------------------------------------------------


def _reason_without_effect(adapter: Adapter) -> str | None:
    """The reason for which an adapter leaves its model unchanged; None if it changes the model."""
    changes = list(adapter.changes.values())
    if any(change.replacement or change.magnitude for change in changes):
        return None
    if all(change.scaling == 0 for change in changes):
        return "its scaling is 0 (lora_alpha in adapter_config.json)"
    factors = [key for change in changes for key in (change.b, change.bias) if key is not None and change.scaling != 0]
    return "all of its B factors are zero" if all(map(adapter.is_zero, factors)) else None


def _equal_adapters(inputs: Inputs, left_out: set[ModelReference]) -> Iterator[str]:
    """A note on each pair of equal adapters on one model; `left_out` have notes of their own already."""
    adapters = {model: bound.adapter for model, bound in inputs.adaptations.items() if model not in left_out}
    for one, other in combinations(adapters, 2):
        if (
            _scaling_keys(adapters[one].config) == _scaling_keys(adapters[other].config)
            and _same_files(adapters[one], adapters[other])
            and inputs.checkpoints[one].directory.resolve() == inputs.checkpoints[other].directory.resolve()
        ):
            yield f"{one.lora} and {other.lora} are identical: it is one adapter that counts twice."


def _same_files(one: Adapter, other: Adapter) -> bool:
    """Whether all files that two adapters are read from hold the same bytes."""
    pairs = zip(one.files, other.files, strict=False)
    return len(one.files) == len(other.files) and all(filecmp.cmp(a, b, shallow=False) for a, b in pairs)


def _scaling_keys(config: Any) -> list[Any]:
    """The values in an adapter's config by which its factors are scaled."""
    return [config.get(key) for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")]


# -- models -----------------------------------------------------------------------------------------------------------


def _equal_models(inputs: Inputs, has_base: bool) -> Iterator[str]:
    """A note on each model whose weights are those of an earlier one, the base being the first."""
    plain = [model for model in inputs.checkpoints if model not in inputs.adaptations or model == inputs.base]
    equal_to: dict[ModelReference, ModelReference] = {}
    for one, other in combinations(plain, 2):
        if other in equal_to or one in equal_to:
            continue
        extent = _extent_of_equality(inputs, one, other)
        if extent is not None:
            equal_to[other] = one
            effect = "it adds nothing to the merge" if has_base and one == inputs.base else "one model counts twice"
            yield f"The weights of {other} are identical to those of {one}{extent}: {effect}."


def _extent_of_equality(inputs: Inputs, one: ModelReference, other: ModelReference) -> str | None:
    """Words on how much of two models was compared and is equal: empty for all values; None if the models differ."""
    first, second = inputs.checkpoints[one], inputs.checkpoints[other]
    pairs: list[tuple[DiskTensor, DiskTensor]] = []
    for name in inputs.names[one].keys() & inputs.names[other].keys():
        of_first, of_second = _stored(first, inputs.names[one][name]), _stored(second, inputs.names[other][name])
        if len(of_first) != len(of_second) or any(
            a.shape != b.shape or a.dtype != b.dtype or a.is_folded or b.is_folded
            for a, b in zip(of_first, of_second, strict=True)
        ):
            return None  # The layouts or dtypes differ, or one has unmerged factors: these are no copies of one file.
        pairs += zip(of_first, of_second, strict=True)
    pairs = sorted({(a.name, b.name): (a, b) for a, b in pairs}.values(), key=lambda pair: pair[0].name)
    if not pairs:
        return None
    file_pairs = {(first.directory / a.file, second.directory / b.file) for a, b in pairs}
    if all(a.samefile(b) for a, b in file_pairs):
        return ""
    if first.is_headers_only or second.is_headers_only:
        return "" if all(same_content(a, b) for a, b in file_pairs) else None
    with ExitStack() as files:
        readers = [_Reader(checkpoint.directory, files) for checkpoint in (first, second)]
        if not all(_agree(readers, pair, _SAMPLED) for pair in _spread(pairs)):
            return None
        if sum(a.nbytes for a, _ in pairs) > _READ_WHOLE:
            return f" in {_SAMPLED} values of each tensor"
        return "" if all(_agree(readers, pair, None) for pair in pairs) else None


def _stored(checkpoint: Checkpoint, name: str) -> list[DiskTensor]:
    """The tensors on disk that a tensor in memory is made from."""
    return [checkpoint.disk[part] for part in checkpoint.group_of[name].disk]


def _spread(pairs: Sequence[tuple[DiskTensor, DiskTensor]]) -> Iterator[tuple[DiskTensor, DiskTensor]]:
    """All pairs, in an order that soon reaches every part of a model: tensors that were trained lie together."""
    step = max(1, len(pairs) // 8)
    for start in range(step):
        yield from pairs[start::step]


def _agree(readers: Sequence[_Reader], pair: tuple[DiskTensor, DiskTensor], most: int | None) -> bool:
    """Whether the values that are read of two tensors, about `most` of each or all of them, are equal bit for bit."""
    one, other = (reader.read(tensor, most) for reader, tensor in zip(readers, pair, strict=True))
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


class _Reader:
    """Reads values of tensors from the files of one checkpoint; `files` closes the files."""

    def __init__(self, directory: Path, files: ExitStack) -> None:
        self._directory = directory
        self._files = files
        self._open: dict[str, Any] = {}

    def read(self, tensor: DiskTensor, most: int | None) -> torch.Tensor:
        """(n,) in the tensor's dtype: about `most` values from its middle; None for all of them."""
        if tensor.file not in self._open:
            self._open[tensor.file] = self._opened(self._directory / tensor.file)
        file = self._open[tensor.file]
        window = _window(tensor.shape, most)
        if isinstance(file, dict):
            values: torch.Tensor = file[tensor.key][window]
        else:
            values = fetched(self._directory / tensor.file, tensor.key, file.get_tensor, window)
        return values.contiguous().reshape(-1)

    def _opened(self, path: Path) -> Any:
        """An open file of safetensors, or the dictionary of a pickle, mapped into memory if torch can do that."""
        if path.suffix == ".safetensors":
            return self._files.enter_context(opened(path))
        return unpickled(path)


def _window(shape: Sequence[int], most: int | None) -> tuple[slice, ...]:
    """A block in the middle of a tensor: whole along the last axes as far as `most` values reach, then one index."""
    if most is None:
        return tuple(slice(0, length) for length in shape)
    window: list[slice] = []
    for length in reversed(shape):
        count = max(1, min(length, most))
        start = max(0, length - count) // 2
        window.insert(0, slice(start, start + count))
        most = most // max(1, count)
    return tuple(window)
