"""Which tensors of a checkpoint an adapter means by its names.

The names are those of the class through which the adapter was trained: the checkpoint's own class, its text class, the
class of a model inside the checkpoint, or of a model around it. For each class, the names of every version of
transformers that can be loaded are known.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from mergekit_mm.checkpoints.adapters.adapter import Adapter
from mergekit_mm.checkpoints.adapters.assembly import BareParameter, Parts
from mergekit_mm.checkpoints.bare_parameters import (
    is_target,
    is_turned,
    module_and_depth,
    number_of_matrices,
    outermost_first,
)
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.lora_scaling import lora_scaling
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES
from mergekit_mm.checkpoints.submodels import View, views
from mergekit_mm.checkpoints.weight_files import ADAPTER_CONFIG
from mergekit_mm.checkpoints.weight_names import Place, find_places
from mergekit_mm.errors import MergeError

# How the names of LLaVA's own code, in which most adapters of LLaVA were trained, begin in transformers. Such an
# adapter is known by its projector; without one its names are those of the language model's class.
_LLAVA_PROJECTOR = "mm_projector."
_FROM_LLAVA = {
    "model.layers.": "model.language_model.layers.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.norm.": "model.language_model.norm.",
    f"model.{_LLAVA_PROJECTOR}0.": "model.multi_modal_projector.linear_1.",
    f"model.{_LLAVA_PROJECTOR}2.": "model.multi_modal_projector.linear_2.",
    "model.vision_tower.vision_tower.": "model.vision_tower.",
}
_MOST_DROPPED = 3  # parts that a model around the checkpoint's has put before all names: `base.thinker.` has two


@dataclass(eq=False)
class Naming:
    """An adapter's names, read as names of one class of a checkpoint."""

    class_description: str | None  # None for the checkpoint's own class
    names: dict[str, str] = field(default_factory=dict)  # name in memory -> the adapter's
    # name in memory of a tensor without a single name in the adapter -> its parts
    assembled: dict[str, Parts | BareParameter] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # the adapter's names that mean nothing
    problems: list[str] = field(default_factory=list)  # descriptions of misfits
    settled: set[str] = field(default_factory=set)  # names in memory of tensors that change with all their tied ones

    @property
    def memory(self) -> list[str]:
        """The changed tensors by their names in memory."""
        return [*self.names, *self.assembled]


def find_names(adapter: Adapter, checkpoint: Checkpoint, spare: Collection[str] = ()) -> Naming:
    """The first naming in which all names of an adapter have a place and all shapes agree, else the closest to that.

    spare: names of the adapter that need not have a place.
    """
    best: Naming | None = None

    def misfit(found: Naming) -> tuple[int, int, int]:
        return len(set(found.lost).difference(spare)), len(found.problems), len(found.lost)

    for found in _namings(adapter, checkpoint, spare):
        if not found.lost and not found.problems:
            return found
        if best is None or misfit(found) < misfit(best):
            best = found
    assert best is not None
    return best


def _namings(adapter: Adapter, checkpoint: Checkpoint, spare: Collection[str]) -> Iterator[Naming]:
    forms = _forms(list(adapter.changes), checkpoint, spare)
    if checkpoint.meta_model is None:
        for form in forms:
            yield from (_by_disk(adapter, checkpoint, form, start) for start in _prefixes(checkpoint, form))
        return
    known: list[View] = []
    for form in forms:
        for view in known or views(checkpoint):
            own = form is forms[0] and view.meta_model is checkpoint.meta_model
            if own or _fits_sample(adapter, view, {name: each for name, each in form.items() if name not in spare}):
                yield _Reading(adapter, checkpoint, view, form, None if own else view.description).naming
            if form is forms[0]:
                known.append(view)


def _forms(trained: list[str], checkpoint: Checkpoint, spare: Collection[str]) -> list[dict[str, str]]:
    """The adapter's names as they are, without parts before all names that do not occur in this model, and of LLaVA."""
    own = {part for name in checkpoint.tensors for part in name.split(".")}
    forms = [{name: name for name in trained}]
    while len(forms) <= _MOST_DROPPED:
        first = {form.partition(".")[0] for name, form in forms[-1].items() if name not in spare}
        if len(first) != 1 or first <= own:
            break
        forms.append({n: f if n in spare else f.partition(".")[2] for n, f in forms[-1].items()})
    if any(_LLAVA_PROJECTOR in name for name in trained):
        forms += [{own: _from_llava(name) for own, name in form.items()} for form in forms]
    return forms


def _from_llava(name: str) -> str:
    begin = next((begin for begin in _FROM_LLAVA if name.startswith(begin)), None)
    return name if begin is None else _FROM_LLAVA[begin] + name.removeprefix(begin)


def _fits_sample(adapter: Adapter, view: View, form: Mapping[str, str]) -> bool:
    """Whether one name of each kind has a place. Names of bare parameters are left out: they are those of modules."""
    kinds = {re.sub(r"\d+", "0", name): name for own, name in form.items() if not adapter.changes[own].is_bare}
    return len(find_places(view.meta_model, kinds.values())) == len(kinds)


def _prefixes(checkpoint: Checkpoint, form: Mapping[str, str]) -> list[str]:
    """Prefixes for an adapter's names in a checkpoint whose model is not known, but only its names on disk.

    Layers of towers may have the names of the language model's layers; the language model comes first.
    """
    sample = next(iter(form.values()))
    ends = [info for name, info in checkpoint.tensors.items() if name.endswith(f".{sample}")]
    ends.sort(key=lambda info: info.role not in LANGUAGE_ROLES)
    return ["", *(info.name.removesuffix(sample) for info in ends)]


def _by_disk(adapter: Adapter, checkpoint: Checkpoint, form: Mapping[str, str], start: str) -> Naming:
    found = Naming(f"{start.rstrip('.')} alone" if start else None)
    for own, name in form.items():
        names = [start + name, *(_spellings(name) if adapter.trained_in(own) else ())]
        info = next((checkpoint.tensors[each] for each in names if each in checkpoint.tensors), None)
        if info is None:
            found.lost.append(own)
        else:
            found.names[info.name] = own
            _check_shape(found, adapter, own, info.shape, info.vocabulary_axis is not None)
    return found


def _check_shape(found: Naming, adapter: Adapter, own: str, expected: tuple[int, ...], has_rows: bool) -> None:
    if (shape := adapter.shape(own, expected)) != expected:
        rows = has_rows and shape[1:] == expected[1:]
        hint = "; resize the model's embeddings as in training, and save it, to name it as the base" if rows else ""
        found.problems.append(f"{own}: the adapter is for {shape}, the model has {expected}{hint}")


def _spellings(name: str) -> list[str]:
    """A name with the usual prefix of a model's body, and without it."""
    return [f"model.{name}", name.removeprefix("model.")]


class _Reading:
    """One attempt to read an adapter's names as those of one class."""

    def __init__(
        self,
        adapter: Adapter,
        checkpoint: Checkpoint,
        view: View,
        form: Mapping[str, str],
        class_description: str | None,
    ) -> None:
        """form: the adapter's own name -> the name to look for."""
        self.adapter, self.checkpoint, self.view = adapter, checkpoint, view
        self.naming = Naming(class_description)
        bare = {own: name for own, name in form.items() if adapter.changes[own].is_bare}
        places = find_places(view.meta_model, (name for own, name in form.items() if own not in bare))
        parts: dict[int, dict[str, Place]] = {}
        for own, name in form.items():
            if own in bare:
                continue
            place = places.get(name) or self._place_of_trained(own, name)
            if place is None or place.memory not in view.names:
                self.naming.lost.append(own)
            elif place.group is None:
                self._whole(own, view.names[place.memory])
            else:
                parts.setdefault(id(place.group), {})[own] = place
        for members in parts.values():
            self._parts(members)
        self._bare(bare)

    def _place_of_trained(self, own: str, name: str) -> Place | None:
        """The place of a tensor from a file beside the adapter, whose name may have or lack the prefix of the body."""
        if self.adapter.trained_in(own) is None:
            return None
        found = find_places(self.view.meta_model, _spellings(name))
        return next(iter(found.values()), None)

    def _whole(self, own: str, memory: str) -> None:
        other = self.naming.names.setdefault(memory, own)
        if other != own and self.adapter.holds_the_same(other, own):
            return
        if other != own:
            self.naming.problems.append(f"{own}: the adapter holds it as {other} too")
        elif (info := self.checkpoint.tensors.get(memory)) is not None:
            _check_shape(self.naming, self.adapter, own, info.shape, info.vocabulary_axis is not None)

    def _parts(self, members: dict[str, Place]) -> None:
        """Enter names of parts, which become tensors in memory by a conversion."""
        group = next(iter(members.values())).group
        assert group is not None
        own: dict[str, str] = {}
        for name, place in members.items():
            if (other := own.setdefault(place.member, name)) != name:
                self.naming.problems.append(f"{name}: the adapter holds it as {other} too")
            _check_shape(self.naming, self.adapter, name, place.shape, has_rows=False)
        if self.naming.problems:
            return
        needs_base = any(map(self.adapter.needs_base, own.values()))
        if needs_base and len(group.memory) > 1:
            self.naming.problems.append(
                f"{next(iter(members))}: it is converted to {', '.join(group.memory)} together with others, and "
                "changed in a way that only the base's values tell; merge that adapter with PEFT"
            )
            return
        for target in group.memory:
            made = Parts(self.adapter, group, target, own)
            if (memory := self.view.names.get(target)) is None:
                self.naming.lost += members
            elif made.touches_target:
                self._assembled(memory, made, next(iter(members)))

    def _bare(self, bare: Mapping[str, str]) -> None:
        modules: dict[str, dict[int, str]] = {}
        for own, name in bare.items():
            module, depth = module_and_depth(name.removesuffix(".weight"))
            modules.setdefault(module, {})[depth] = own
        wanted = tuple(self.adapter.config.get("target_parameters") or ())
        paths = [f"{module}.{p}" for module in modules for p in {target.rpartition(".")[2] for target in wanted}]
        places = find_places(self.view.meta_model, (path for path in paths if is_target(path, wanted)))
        for module, levels in modules.items():
            found = {places[p].memory: p for p in paths if p in places and p.rpartition(".")[0] == module}
            inside = outermost_first(self.view.meta_model, found)
            if sorted(levels) != list(range(len(inside))):
                self.naming.lost += levels.values()
                continue
            for depth, own in levels.items():
                self._bare_parameter(own, found[inside[depth]], inside[depth])

    def _bare_parameter(self, own: str, path: str, target: str) -> None:
        memory = self.view.names.get(target)
        if memory is None:
            self.naming.lost.append(own)
            return
        shape = tuple(self.view.meta_model.tensors[target].shape)
        matrices = number_of_matrices(shape)
        (_, columns), (rows, _) = a, b = self.adapter.factor_shapes(own)
        try:
            scaling = lora_scaling(self.adapter.name, self.adapter.config, path, a, b, ADAPTER_CONFIG, matrices)
        except MergeError as error:
            self.naming.problems.append(str(error))
            return
        turned = is_turned(self.view.meta_model, target, rows, columns)
        if turned is None:
            self.naming.problems.append(f"{own}: the adapter is for matrices {(rows, columns)}, {path} is {shape}")
            return
        self._assembled(memory, BareParameter(self.adapter, own, shape, turned, scaling), own)

    def _assembled(self, memory: str, made: Parts | BareParameter, own: str) -> None:
        if memory in self.naming.names or memory in self.naming.assembled:
            self.naming.problems.append(f"{own}: the adapter changes {memory} under another name too")
        self.naming.assembled[memory] = made
