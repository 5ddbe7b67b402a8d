"""All that was found of a merge's experts, and the groups of tensors in which it is shown."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from mergekit_mm.analysis.cost import Cost
from mergekit_mm.analysis.groups import Figures, Group
from mergekit_mm.checkpoints.roles import Role

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Expert:
    """One expert of a merge. label: a letter, which stands for it in tables. form: `adapter`, or `full`."""

    label: str
    name: str
    form: str
    model_type: str


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """What `mergekit-mm inspect` found.

    tensors: those that were measured, in the order of the output. not_measured: why others were not -> how many.
    layers: the layers that were looked at in each stack, None for all. cost: of all that could be measured, of which
    spectra and losses may have been left out. side_files, notes: as `check` prints them.
    """

    headline: str
    is_omni: bool  # whether a modality merge is planned, and not one of capabilities
    base: str
    method: str
    experts: Sequence[Expert]
    tensors: Sequence[Figures]
    not_measured: Mapping[str, int]
    layers: int | None
    cost: Cost
    has_spectra: bool
    methods: Sequence[str]
    side_files: Sequence[str]
    notes: Sequence[str]

    def __str__(self) -> str:
        """The text of `mergekit-mm inspect`."""
        from mergekit_mm.analysis.text import as_text  # local: it shows what is defined here

        return as_text(self)

    def group(self, tensors: Sequence[Figures]) -> Group:
        """Some of the tensors together."""
        return Group(tensors, len(self.experts))

    @cached_property
    def all(self) -> Group:
        """All tensors that were measured."""
        return self.group(self.tensors)

    @cached_property
    def merged(self) -> Group:
        """The tensors in which the experts come together: those that are merged, averaged, or routed to owners."""
        return self.group([tensor for tensor in self.tensors if tensor.action in ("merge", "average", "route")])

    @cached_property
    def by_role(self) -> Mapping[Role, Group]:
        """In the order of the roles."""
        found = self._grouped(self.tensors, lambda tensor: tensor.role)
        return {role: found[role] for role in Role if role in found}

    def by_part(self, role: Role) -> Mapping[str, Group]:
        """The tensors of a role by the part of a layer that they are, in the order of the model."""
        return self._grouped(
            [tensor for tensor in self.tensors if tensor.role is role], lambda tensor: tensor.place.part
        )

    @cached_property
    def by_layer(self) -> Mapping[str, Mapping[int, Group]]:
        """Stack of layers -> layer -> its matrices: beside the weights of norms, near 1, their changes would vanish."""
        inside = [tensor for tensor in self.tensors if tensor.place.layer is not None and len(tensor.shape) > 1]
        found = self._grouped(inside, lambda tensor: (tensor.place.stack, tensor.place.layer))
        stacks: dict[str, dict[int, Group]] = {}
        for (stack, layer), group in sorted(found.items()):
            assert layer is not None
            stacks.setdefault(stack, {})[layer] = group
        return stacks

    def cells(self, figure: Callable[[Group], float]) -> Mapping[str, Mapping[str, Mapping[int, float]]]:
        """Stack -> part -> layer -> one figure of its tensors: what a heat map shows."""
        inside = [tensor for tensor in self.tensors if tensor.place.layer is not None]
        found = self._grouped(inside, lambda tensor: tensor.place)
        made: dict[str, dict[str, dict[int, float]]] = {}
        for place, group in found.items():
            assert place.layer is not None
            made.setdefault(place.stack, {}).setdefault(place.part, {})[place.layer] = figure(group)
        return made

    def _grouped(self, tensors: Sequence[Figures], key: Callable[[Figures], K]) -> dict[K, Group]:
        found: dict[K, list[Figures]] = {}
        for tensor in tensors:
            found.setdefault(key(tensor), []).append(tensor)
        return {each: self.group(several) for each, several in found.items()}
