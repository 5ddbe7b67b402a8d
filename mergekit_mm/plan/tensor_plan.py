"""The plan of one tensor of the output as data: its inputs, the action, its parameters, and the reason for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.checkpoints.expert_stacks import Part


@dataclass(frozen=True)
class Keep:
    """The tensor of one input is taken unchanged."""

    model: ModelReference

    def __str__(self) -> str:
        return f"kept as in {self.model}"


@dataclass(frozen=True)
class Average:
    """The mean of the experts' tensors; the base model's is left out."""

    def __str__(self) -> str:
        return "mean of the experts"


@dataclass(frozen=True)
class Merge:
    """A merge method makes the tensor from those of all inputs that have it."""

    method: str
    in_core: bool = False  # whether a method of mergekit works in the joint core of the adapters

    def __str__(self) -> str:
        return f"merged by {self.method}" + (" in the joint core of the adapters" if self.in_core else "")


@dataclass(frozen=True)
class Copy:
    """The tensor is a second copy of another tensor of the output, to which the base model ties it."""

    of: str  # name in memory of the other tensor

    def __str__(self) -> str:
        return f"a copy of {self.of}"


@dataclass(frozen=True)
class Route:
    """Tokens of each modality go through a tensor of their owner, all other tokens through the `shared` one (DAMC).

    rank: None if each owner keeps its donor's whole tensor; else the rank of the factors that each owner keeps beside
    the shared matrix, 0 if all donors agree on that matrix.
    """

    shared: Keep | Average | Merge
    owners: tuple[tuple[str, ModelReference], ...]  # (`host` or the name of a guest, the donor whose tensor it keeps)
    rank: int | None

    def __str__(self) -> str:
        form = "whole matrices" if self.rank is None else f"factors of rank {self.rank}"
        owners = ", ".join(f"{owner} ({donor})" for owner, donor in self.owners)
        return f"{self.shared}; beside it {form} for the tokens of {owners}"


Action = Keep | Average | Merge | Copy | Route


@dataclass(frozen=True)
class TensorPlan:
    """The plan of one tensor of the output. Names are those in memory; the output has those of its layout.

    Two plans are equal if they would make the same tensor from the same inputs in the same way.
    """

    name: str
    info: TensorInfo  # of the layout's tensor of this name; in a repeated or moved layer, of the original
    inputs: Mapping[ModelReference, str] = field(
        hash=False
    )  # the inputs that have the tensor -> their own names for it
    action: Action
    base: ModelReference | None  # the model over which deltas are taken here; it need not be one of the inputs
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of the method, for all inputs
    input_parameters: Mapping[ModelReference, Mapping[str, Any]] = field(default_factory=dict, hash=False)  # for each
    reason: str = ""  # the reason why the action is not to merge by the method
    part: Part | None = None  # the experts of a part of a stack, whose shape `info` has; None for a whole tensor

    @property
    def experts(self) -> list[ModelReference]:
        """The inputs that have the tensor, without the base model."""
        return [model for model in self.inputs if model != self.base]

    def in_part(self, part: Part) -> TensorPlan:
        """The same for some of the experts of a stack."""
        info = replace(self.info, shape=(part[1] - part[0], *self.info.shape[1:]))
        return replace(self, name=f"{self.name}[{part[0]}:{part[1]}]", info=info, part=part)

    @property
    def shared_action(self) -> Keep | Average | Merge | Copy:
        """The action; of a route, the action for tokens that belong to no owner."""
        return self.action.shared if isinstance(self.action, Route) else self.action

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.info.shape)) or "scalar"
        lines = [f"{self.name}  ({self.info.role.value}, {shape}, {short_dtype(self.info)})"]
        lines.append(f"  {self.action}" + (f": {self.reason}" if self.reason else ""))
        if self.parameters:
            lines.append(f"  parameters: {_listed(self.parameters.items())}")
        for model, name in self.inputs.items():
            mark = " (base model)" if model == self.base else ""
            own_name = f" as {name}" if name != self.name else ""
            parameters = self.input_parameters.get(model)
            values = f": {_listed(parameters.items())}" if parameters else ""
            lines.append(f"  from {model}{mark}{own_name}{values}")
        return "\n".join(lines)


def short_dtype(info: TensorInfo) -> str:
    """The name of a tensor's dtype without `torch.`, such as `bfloat16`."""
    return str(info.dtype).removeprefix("torch.")


def _listed(values: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values if value is not None)
