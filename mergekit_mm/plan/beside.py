"""Files beside the weights of the inputs: adapters that belong to the models themselves, and unused files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.adapters.base_names import same_weights
from mergekit_mm.checkpoints.adapters.binding import Adaptation
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import read_json, weight_files
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.remote import lasting_path, same_content
from mergekit_mm.checkpoints.side_files.inventory import Inventory, take_inventory
from mergekit_mm.checkpoints.side_files.model_files import is_read_as_it_is
from mergekit_mm.checkpoints.weight_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    holds_adapter,
    holds_weights,
    unused_weight_files,
)
from mergekit_mm.errors import MergeError


@dataclass(frozen=True)
class OwnAdapter:
    """An adapter that belongs to an architecture. The model's class switches it on for one medium: it is not merged."""

    directory: Path

    @property
    def files(self) -> list[str]:
        return [name for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) if (self.directory / name).is_file()]


def own_adapter(
    checkpoints: Mapping[ModelReference, Checkpoint], adaptations: Mapping[ModelReference, Adaptation], composed: bool
) -> tuple[OwnAdapter | None, list[str]]:
    """The adapter of their own that all inputs of an architecture share and that the output gets unchanged, and notes.

    composed: whether the inputs make an omni model.

    Raises:
        MergeError: the inputs have different such adapters, or make an omni model, which has no place for one.
    """
    applied = {a.adapter.directory.resolve() for a in adaptations.values()}
    owners = {c.directory.resolve(): c for m, c in checkpoints.items() if c.has_own_adapter and not m.lora}
    kept = [OwnAdapter(directory) for directory in owners if directory not in applied]
    if not kept:
        notes = ["The model's own adapter is a part of the merged weights, so the output has none."] if applied else []
        return None, notes if any(c.has_own_adapter for c in checkpoints.values()) else []
    names = [owners[each.directory].name for each in kept]
    if composed:
        raise MergeError(
            f"{names[0]} has an adapter that its own class switches on for one medium, for which an omni model has no "
            f"place. Write {names[0]}+{names[0]} to have it applied always, or name a copy without {ADAPTER_CONFIG}."
        )
    for other, name in zip(kept[1:], names[1:], strict=True):
        if not _same_adapter(kept[0].directory, other.directory):
            raise MergeError(
                f"{names[0]} and {name} have different adapters of their own, which their class switches on for one "
                "medium; no merge of the weights can hold both. Merge the adapters by themselves (`mergekit-mm lora` "
                "on copies of the base without one, as base+adapter) and put the result beside each model."
            )
    without = [c.name for c in checkpoints.values() if not c.has_own_adapter]
    note = f"The adapter that {names[0]} has of its own is not merged: the output gets it as it is."
    return kept[0], [note, *([f"{', '.join(without)} has no such adapter."] if without else [])]


def require_same_folders(base: Checkpoint, others: Iterable[Checkpoint]) -> None:
    """Refuse inputs that differ in adapters in folders of their directories. Phi-4-multimodal has one for each medium.

    Raises:
        MergeError: such a folder, by its name.
    """
    for folder in sorted(path.parent for path in base.directory.glob(f"*/{ADAPTER_CONFIG}")):
        if folder.name.startswith("checkpoint-") or not holds_adapter(folder):
            continue
        for other in others:
            counterpart = other.directory / folder.name
            if holds_adapter(counterpart) and not _same_adapter(folder, counterpart):
                raise MergeError(
                    f"{base.name} and {other.name} have different adapters in {folder.name}/, which are not merged "
                    "with the weights. Merge them by themselves (`mergekit-mm lora`) and put the result into both, or "
                    f"remove that folder of {other.name} to keep the base's."
                )


def _same_adapter(*directories: Path) -> bool:
    """Whether two directories hold the same adapter, whatever path of its base each names."""
    first, second = ({**read_json(d / ADAPTER_CONFIG), "base_model_name_or_path": None} for d in directories)
    one, other = (next(d / name for name in ADAPTER_WEIGHTS if (d / name).is_file()) for d in directories)
    return first == second and one.name == other.name and same_content(one, other)


def unused_beside(
    checkpoints: Mapping[ModelReference, Checkpoint],
    adaptations: Mapping[ModelReference, Adaptation],
    carried: OwnAdapter | None,
    copied: Collection[str],
) -> Iterator[str]:
    """Lines on files of the input directories that are neither read, nor copied, nor compared.

    carried: the adapter that the output gets unchanged. copied: the files that the output gets beside its weights, by
    their paths below its directory.
    """
    used: dict[Path, set[str]] = {}  # directory -> names of the files that are read
    names: dict[Path, str] = {}  # directory -> the input's name
    for checkpoint in checkpoints.values():
        directory = checkpoint.directory.resolve()
        used.setdefault(directory, set()).update(checkpoint.files, weight_files(directory))
        names.setdefault(directory, checkpoint.name)
        if carried and checkpoint.has_own_adapter:
            used[directory].update(ADAPTER_WEIGHTS)
    for model, adaptation in adaptations.items():
        directory = adaptation.adapter.directory.resolve()
        used.setdefault(directory, set()).update(file.name for file in adaptation.adapter.files)
        if holds_weights(directory) and same_weights(directory, checkpoints[model].directory):
            used[directory].update(weight_files(directory))  # The directory has a copy of the model under the adapter.
        names.setdefault(directory, adaptation.adapter.name)
    inputs_by_text: dict[str, list[str]] = {}  # Inputs with the same unused files share a line.
    for directory, read in used.items():
        inventory = take_inventory(directory, read, used.keys() - {directory})
        unused = [
            *_adapters_below(directory, names[directory], used.keys(), copied),
            *_unused_files(directory, read, inventory, copied),
        ]
        if unused:
            inputs_by_text.setdefault("; ".join(unused), []).append(names[directory])
    yield from (f"{', '.join(inputs)}: {text}" for text, inputs in inputs_by_text.items())


def _adapters_below(directory: Path, name: str, inputs: Collection[Path], copied: Collection[str]) -> Iterator[str]:
    """Adapters in folders of one directory that are neither inputs nor copied; `name` is the model in the directory."""
    for folder in sorted(path.parent for path in directory.glob(f"*/{ADAPTER_CONFIG}")):
        if folder.resolve() not in inputs and f"{folder.name}/{ADAPTER_CONFIG}" not in copied:
            advice = "" if holds_adapter(directory) else f", which `{name}+{lasting_path(folder)}` would apply"
            yield f"the adapter in {folder.name}/{advice}"


def _unused_files(
    directory: Path, read: Collection[str], inventory: Inventory, copied: Collection[str]
) -> Iterator[str]:
    """Files and folders of one directory that are neither read nor copied, with the reasons."""
    listed: set[str] = set()
    side_files = {name for name in inventory.files if not name.endswith(".pt")}  # A .pt file may hold tensors.
    for text, names in unused_weight_files(directory, {*read, *copied, *side_files}):
        listed.update(names)
        yield text
    yield from (f"{name} ({reason})" for name, reason in inventory.uncopied.items() if name not in listed)
    copied_tops = {name.partition("/")[0] for name in copied}
    others = [name for name in inventory.files if is_read_as_it_is(name) and not name.endswith(".py")]
    tops = {f"{top}{slash}" for top, slash, _ in (n.partition("/") for n in others) if top not in copied_tops | listed}
    adapters = {f"{path.parent.name}/" for path in directory.glob(f"*/{ADAPTER_CONFIG}")}
    if unlisted := tops - adapters:
        yield f"{some(unlisted)} (of which name the output gets none)"
