"""What lies beside the weights of the inputs: adapters of the models' own, and files that nothing loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelReference

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.architecture.disk import read_json, weight_files
from mergekit_mm.architecture.inventory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, holds_adapter, unused_files
from mergekit_mm.architecture.remote import lasting_path, same_content
from mergekit_mm.errors import MergeError
from mergekit_mm.lora.binding import Adaptation


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


def unused_weights(
    checkpoints: Mapping[ModelReference, Checkpoint],
    adaptations: Mapping[ModelReference, Adaptation],
    carried: OwnAdapter | None,
) -> Iterator[str]:
    """A line for whatever each input directory holds in weights that nothing reads."""
    used: dict[Path, set[str]] = {}
    names: dict[Path, str] = {}
    for checkpoint in checkpoints.values():
        place = checkpoint.directory.resolve()
        used.setdefault(place, set()).update(checkpoint.files, weight_files(place))
        names.setdefault(place, checkpoint.name)
        if carried and checkpoint.has_own_adapter:
            used[place].update(ADAPTER_WEIGHTS)
    for adaptation in adaptations.values():
        place = adaptation.adapter.directory.resolve()
        used.setdefault(place, set()).update(file.name for file in adaptation.adapter.files)
        names.setdefault(place, adaptation.adapter.name)
    first = next(iter(used))  # of the base, whose folders are the output's
    for place, files in used.items():
        for folder in sorted(path.parent for path in place.glob(f"*/{ADAPTER_CONFIG}")):
            if folder.resolve() not in used and (len(used) == 1 or not (first / folder.name).is_dir()):
                how = f"{names[place]}+{lasting_path(folder)}"
                yield f"{names[place]}: the adapter in {folder.name}/, which `{how}` would apply"
        yield from (f"{names[place]}: {told}" for told in unused_files(place, files))
