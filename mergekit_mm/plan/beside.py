"""What lies beside the weights of the inputs: adapters of the models' own, and files that nothing loads."""

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
    """An adapter that belongs to the architecture: its class switches it on for one medium, so that it stays apart."""

    directory: Path

    @property
    def files(self) -> list[str]:
        return [name for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) if (self.directory / name).is_file()]


def own_adapter(
    checkpoints: Mapping[ModelReference, Checkpoint], adaptations: Mapping[ModelReference, Adaptation], composed: bool
) -> tuple[OwnAdapter | None, list[str]]:
    """The adapter that all inputs of such an architecture share and the output gets, and notes.

    Raises:
        MergeError: the inputs have different ones, or they make an omni model, which has no place for it.
    """
    applied = {a.adapter.directory.resolve() for a in adaptations.values()}
    having = {c.directory.resolve(): c for m, c in checkpoints.items() if c.has_own_adapter and not m.lora}
    kept = [OwnAdapter(place) for place in having if place not in applied]
    if not kept:
        notes = ["The model's own adapter is a part of the merged weights, so the output has none."] if applied else []
        return None, notes if any(c.has_own_adapter for c in checkpoints.values()) else []
    names = [having[each.directory].name for each in kept]
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
    """Refuse inputs that differ in an adapter below the base's directory, as Phi-4-multimodal has one for each medium.

    Raises:
        MergeError: naming the folder.
    """
    for folder in sorted(path.parent for path in base.directory.glob(f"*/{ADAPTER_CONFIG}")):
        if folder.name.startswith("checkpoint-") or not holds_adapter(folder):
            continue
        for other in others:
            theirs = other.directory / folder.name
            if holds_adapter(theirs) and not _same_adapter(folder, theirs):
                raise MergeError(
                    f"{base.name} and {other.name} have different adapters in {folder.name}/, which are not merged "
                    "with the weights. Merge them by themselves (`mergekit-mm lora`) and put the result into both, or "
                    f"remove that folder of {other.name} to keep the base's."
                )


def _same_adapter(here: Path, there: Path) -> bool:
    configs = [{**read_json(place / ADAPTER_CONFIG), "base_model_name_or_path": None} for place in (here, there)]
    ours, theirs = (next(p / name for name in ADAPTER_WEIGHTS if (p / name).is_file()) for p in (here, there))
    return configs[0] == configs[1] and ours.name == theirs.name and same_content(ours, theirs)


def unused_beside(
    checkpoints: Mapping[ModelReference, Checkpoint],
    adaptations: Mapping[ModelReference, Adaptation],
    carried: OwnAdapter | None,
    copied: Collection[str],
) -> Iterator[str]:
    """Lines for what the input directories hold beside the tensors and is neither read, nor copied, nor compared.

    copied: the files that the output gets beside its weights, by their paths below its directory.
    """
    used: dict[Path, set[str]] = {}
    names: dict[Path, str] = {}
    for checkpoint in checkpoints.values():
        place = checkpoint.directory.resolve()
        used.setdefault(place, set()).update(checkpoint.files, weight_files(place))
        names.setdefault(place, checkpoint.name)
        if carried and checkpoint.has_own_adapter:
            used[place].update(ADAPTER_WEIGHTS)
    for model, adaptation in adaptations.items():
        place = adaptation.adapter.directory.resolve()
        used.setdefault(place, set()).update(file.name for file in adaptation.adapter.files)
        if holds_weights(place) and same_weights(place, checkpoints[model].directory):
            used[place].update(weight_files(place))  # a copy of the model that the adapter is put on
        names.setdefault(place, adaptation.adapter.name)
    lines: dict[str, list[str]] = {}
    for place, read in used.items():
        inventory = take_inventory(place, read, used.keys() - {place})
        found = [*_adapters_below(place, names[place], used.keys(), copied), *_left(place, read, inventory, copied)]
        if found:
            lines.setdefault("; ".join(found), []).append(names[place])
    yield from (f"{', '.join(owners)}: {told}" for told, owners in lines.items())


def _adapters_below(place: Path, name: str, inputs: Collection[Path], copied: Collection[str]) -> Iterator[str]:
    for folder in sorted(path.parent for path in place.glob(f"*/{ADAPTER_CONFIG}")):
        if folder.resolve() not in inputs and f"{folder.name}/{ADAPTER_CONFIG}" not in copied:
            applied = "" if holds_adapter(place) else f", which `{name}+{lasting_path(folder)}` would apply"
            yield f"the adapter in {folder.name}/{applied}"


def _left(place: Path, read: Collection[str], inventory: Inventory, copied: Collection[str]) -> Iterator[str]:
    """Files and folders of one directory that are left where they are."""
    told: set[str] = set()
    side_files = {name for name in inventory.files if not name.endswith(".pt")}  # a .pt file may hold tensors
    for text, names in unused_weight_files(place, {*read, *copied, *side_files}):
        told.update(names)
        yield text
    yield from (f"{name} ({reason})" for name, reason in inventory.uncopied.items() if name not in told)
    tops = {name.partition("/")[0] for name in copied}
    more = [name for name in inventory.files if is_read_as_it_is(name) and not name.endswith(".py")]
    beyond = {f"{top}{slash}" for top, slash, _ in (n.partition("/") for n in more) if top not in tops | told}
    adapters = {f"{path.parent.name}/" for path in place.glob(f"*/{ADAPTER_CONFIG}")}
    if beyond := beyond - adapters:
        yield f"{some(beyond)} (of which name the output gets none)"
