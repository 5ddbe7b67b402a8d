"""Inputs that add nothing to a merge: copies of the base or of each other, and adapters that change nothing.

Tensors are compared by samples, a few thousand values of each, and read whole only where all samples are equal and the
model is small. Most fine-tunes differ from their base in the first sample. Of models whose headers alone were fetched
from the hub, whole files are compared, by the hashes that the hub has of them.
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
from safetensors import safe_open

from mergekit_mm.checkpoints.adapters.adapter import Adapter
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import DiskTensor, unpickled
from mergekit_mm.checkpoints.remote import same_content
from mergekit_mm.plan.inputs import Inputs, OmniInputs

_SAMPLED = 4096  # values of each tensor
_READ_WHOLE = 1 << 30  # bytes of a model up to which equal samples are followed by a look at everything


def unchanged(inputs: Inputs, has_base: bool) -> Iterator[str]:
    """A note on each input whose weights are those of another, and on each adapter that adds nothing.

    has_base: whether the merge is over a base model; else the first input only gives the layout.
    """
    null = set()
    for model, adaptation in inputs.adaptations.items():
        if (why := _adds_nothing(adaptation.adapter)) is not None:
            null.add(model)
            yield f"{model.lora} adds nothing to the merge: {why}."
    if not isinstance(inputs, OmniInputs):
        yield from _equal_models(inputs, has_base)
    yield from _equal_adapters(inputs, null)


# -- adapters ---------------------------------------------------------------------------------------------------------


def _adds_nothing(adapter: Adapter) -> str | None:
    """Why an adapter leaves its base as it is; None if it does not."""
    changes = list(adapter.changes.values())
    if any(change.replacement or change.magnitude for change in changes):
        return None
    if all(change.scaling == 0 for change in changes):
        return "its scaling is 0 (lora_alpha in adapter_config.json)"
    factors = [key for change in changes for key in (change.b, change.bias) if key is not None and change.scaling != 0]
    return "all of its B factors are zero" if all(map(adapter.is_zero, factors)) else None


def _equal_adapters(inputs: Inputs, apart: set[ModelReference]) -> Iterator[str]:
    found = {model: bound.adapter for model, bound in inputs.adaptations.items() if model not in apart}
    for one, other in combinations(found, 2):
        scaled_alike = _scale(found[one].config) == _scale(found[other].config)
        if (
            scaled_alike
            and _same_files(found[one], found[other])
            and inputs.checkpoints[one].directory.resolve() == inputs.checkpoints[other].directory.resolve()
        ):
            yield f"{one.lora} and {other.lora} are identical: it is one adapter that counts twice."


def _same_files(one: Adapter, other: Adapter) -> bool:
    """Whether all files that two adapters are read from hold the same bytes."""
    pairs = zip(one.files, other.files, strict=False)
    return len(one.files) == len(other.files) and all(filecmp.cmp(a, b, shallow=False) for a, b in pairs)


def _scale(config: Any) -> list[Any]:
    return [config.get(key) for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")]


# -- models -----------------------------------------------------------------------------------------------------------


def _equal_models(inputs: Inputs, has_base: bool) -> Iterator[str]:
    plain = [model for model in inputs.checkpoints if model not in inputs.adaptations or model == inputs.base]
    equal_to: dict[ModelReference, ModelReference] = {}
    for one, other in combinations(plain, 2):  # the base comes first
        if other in equal_to or one in equal_to:
            continue
        how = _equal(inputs, one, other)
        if how is not None:
            equal_to[other] = one
            effect = "it adds nothing to the merge" if has_base and one == inputs.base else "one model counts twice"
            yield f"The weights of {other} are identical to those of {one}{how}: {effect}."


def _equal(inputs: Inputs, one: ModelReference, other: ModelReference) -> str | None:
    """How sure it is that two models hold the same values, in all tensors that both have; None if they do not."""
    first, second = inputs.checkpoints[one], inputs.checkpoints[other]
    pairs = []
    for name in inputs.names[one].keys() & inputs.names[other].keys():
        ours, theirs = _stored(first, inputs.names[one][name]), _stored(second, inputs.names[other][name])
        if len(ours) != len(theirs) or any(
            a.shape != b.shape or a.dtype != b.dtype or a.is_folded or b.is_folded
            for a, b in zip(ours, theirs, strict=True)
        ):
            return None  # another layout or precision, or factors: these are not copies of one file
        pairs += list(zip(ours, theirs, strict=True))
    pairs = sorted({(a.name, b.name): (a, b) for a, b in pairs}.values(), key=lambda pair: pair[0].name)
    if not pairs:
        return None
    files_of_both = {(first.directory / a.file, second.directory / b.file) for a, b in pairs}
    if all(ours.samefile(theirs) for ours, theirs in files_of_both):
        return ""
    if first.is_headers_only or second.is_headers_only:
        return "" if all(same_content(ours, theirs) for ours, theirs in files_of_both) else None
    with ExitStack() as files:
        readers = [_Reader(checkpoint.directory, files) for checkpoint in (first, second)]
        if not all(_agree(readers, pair, _SAMPLED) for pair in _spread(pairs)):
            return None
        if sum(ours.nbytes for ours, _ in pairs) > _READ_WHOLE:
            return f" in {_SAMPLED} values of each tensor"
        return "" if all(_agree(readers, pair, None) for pair in pairs) else None


def _stored(checkpoint: Checkpoint, name: str) -> list[DiskTensor]:
    """What a tensor is made from on disk."""
    return [checkpoint.disk[part] for part in checkpoint.group_of[name].disk]


def _spread(pairs: Sequence[tuple[DiskTensor, DiskTensor]]) -> Iterator[tuple[DiskTensor, DiskTensor]]:
    """All of them, in an order that soon has been everywhere: the parts of a model that were trained lie together."""
    step = max(1, len(pairs) // 8)
    for start in range(step):
        yield from pairs[start::step]


def _agree(readers: Sequence[_Reader], pair: tuple[DiskTensor, DiskTensor], most: int | None) -> bool:
    ours, theirs = (reader.read(tensor, most) for reader, tensor in zip(readers, pair, strict=True))
    return torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


class _Reader:
    """Values of tensors from the files of one checkpoint, which stay open as long as `files`."""

    def __init__(self, directory: Path, files: ExitStack) -> None:
        self._directory = directory
        self._files = files
        self._open: dict[str, Any] = {}

    def read(self, tensor: DiskTensor, most: int | None) -> torch.Tensor:
        """(n,) values from the middle of a tensor, about `most` of them; None for all."""
        if tensor.file not in self._open:
            self._open[tensor.file] = self._opened(self._directory / tensor.file)
        held = self._open[tensor.file]
        window = _window(tensor.shape, most)
        if isinstance(held, dict):
            values: torch.Tensor = held[tensor.key][window]
        else:
            values = held.get_slice(tensor.key)[window] if tensor.shape else held.get_tensor(tensor.key)
        return values.contiguous().reshape(-1)

    def _opened(self, path: Path) -> Any:
        if path.suffix == ".safetensors":
            return self._files.enter_context(safe_open(str(path), framework="pt"))
        return unpickled(path)


def _window(shape: Sequence[int], most: int | None) -> tuple[slice, ...]:
    """A block in the middle of a tensor: whole in the last axes as far as `most` values reach, one in the others."""
    if most is None:
        return tuple(slice(0, length) for length in shape)
    window: list[slice] = []
    for length in reversed(shape):
        taken = max(1, min(length, most))
        start = max(0, length - taken) // 2
        window.insert(0, slice(start, start + taken))
        most = most // max(1, taken)
    return tuple(window)
