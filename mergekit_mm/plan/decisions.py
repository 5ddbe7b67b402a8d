"""The decision for each output tensor: the policy that the config sets, unless the inputs rule it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, MergeConfiguration, OutputModuleDefinition
from mergekit.merge_methods import BasePolicy, MergeMethod

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.plan.constants import Constants
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.modules import Module
from mergekit_mm.plan.parameters import resolve
from mergekit_mm.plan.policies import Policy, policy_of, why_undefined
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, TensorPlan
from mergekit_mm.plan.walk import output_slots, require_contract

Parameters = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Decisions:
    """Decides the tensors of one merge, and collects the problems that show up on the way."""

    config: MergeConfiguration
    inputs: Inputs
    unlisted: Sequence[str]  # modules that the config does not list
    constants: Constants
    asked: Mapping[ModelReference, set[str]]  # input -> the tensors that the merge needs of it, by names in the layout
    undefined: dict[str, str] = field(default_factory=dict)  # role -> the reason for which the method cannot merge it
    _valid: set[tuple[tuple[str, object], ...]] = field(default_factory=set)  # parameters that the method accepts

    @classmethod
    def of(cls, config: MergeConfiguration, inputs: Inputs, unlisted: Sequence[str]) -> Decisions:
        """Decisions none of which is made yet."""
        return cls(config, inputs, unlisted, Constants(inputs), {model: set() for model in inputs.names})

    def require_defined(self) -> list[str]:
        """A note on constants that are kept though the config merges them, if there are any.

        Raises:
            MergeError: the method cannot merge the tensors of a role, or constants differ between the inputs.
        """
        if problems := [*self.undefined.values(), *self.constants.problems()]:
            raise MergeError("\n".join(problems))
        return [note] if (note := self.constants.note()) else []

    @property
    def method(self) -> MergeMethod:
        return merge_methods.get(self.config.merge_method)

    def decide(
        self, name: str, info: TensorInfo, names: Mapping[ModelReference, str | None], reader: ConfigReader
    ) -> TensorPlan:
        """The plan of one output tensor.

        info: that of the layout's tensor of this name, or of the original of a repeated layer. names: the listed inputs
        -> their own names for the tensor, None for an input that does not have it. reader: the part of the config that
        holds for the tensor.
        """
        held = {model: own for model, own in names.items() if own is not None}
        policy, reason = self._policy(name, info, held, list(names), reader)
        if policy is Policy.BASE:
            return self._keep(name, info, held, reader, reason)
        if policy is Policy.AVERAGE:
            return TensorPlan(name, info, held, Average(), reader.base_model, reason=reason)
        shared, per_input = self._parameters(name, info, held, reader)
        action = Merge(self.config.merge_method)
        return TensorPlan(name, info, held, action, reader.base_model, shared, per_input)

    def _policy(
        self,
        name: str,
        info: TensorInfo,
        held: Mapping[ModelReference, str],
        listed: Sequence[ModelReference],
        reader: ConfigReader,
    ) -> tuple[Policy, str]:
        """The policy that the config asks for, with its reason; or BASE, with the reason why that one cannot hold."""
        role, base = info.role, reader.base_model
        if role.module in self.unlisted:
            return Policy.BASE, f"the config does not list the module {role.module}"
        policy, reason = policy_of(role, name, self.config.merge_method, reader)
        if policy is Policy.BASE:
            return policy, reason
        for model in listed:
            self.asked[model].add(info.name)
        if policy is Policy.AVERAGE and not any(model != base for model in held):
            return Policy.BASE, "no expert has it"
        if self.constants.is_constant(name, info, held):
            return Policy.BASE, "no merge can be made of integers, or of one factor of a product"
        if policy is Policy.MERGE:
            if len(held) < min(len(listed), 2):
                return Policy.BASE, "no other input has it"
            if self._is_untouched(held, base):
                return Policy.BASE, "no adapter changes it"
            layout_model = self.inputs.layout_model(info.name)
            if len(held) < len(listed) and (why := why_undefined(self.method, role, list(held), base, layout_model)):
                self.undefined[role.value] = why
                return Policy.BASE, why
        return policy, reason

    def _is_untouched(self, held: Mapping[ModelReference, str], base: ModelReference | None) -> bool:
        """Whether all inputs are adapters of one base model, none of which changes this tensor: every delta is zero."""
        needs_base = self.method.spec.contract.base is BasePolicy.REQUIRED
        same = {self.inputs.plain(model) for model in held} == {base} and len(held) > 1
        return needs_base and same and not any(self.inputs.adapts(model, own) for model, own in held.items())

    def _keep(
        self, name: str, info: TensorInfo, held: Mapping[ModelReference, str], reader: ConfigReader, reason: str
    ) -> TensorPlan:
        """The base model's tensor; if the base does not have it, that of the input in whose layout it is."""
        layout_model, base = self.inputs.layout_model(info.name), reader.base_model
        kept = next((model for model in (base, layout_model) if model in held), next(iter(held), layout_model))
        if kept not in held:
            held = {**held, kept: self.inputs.names[kept][info.name]}
        return TensorPlan(name, info, held, Keep(kept), base, reason=reason)

    def _parameters(
        self, name: str, info: TensorInfo, held: Mapping[ModelReference, str], reader: ConfigReader
    ) -> tuple[Parameters, Mapping[ModelReference, Parameters]]:
        """The method's parameters for this tensor: those for all inputs, and those of each input.

        Raises:
            MergeError: a parameter is missing, or has a value that the method does not accept.
        """
        spec = self.method.spec
        shared, per_input = resolve(
            spec,
            tensor_name=name,
            inputs=held,
            sources=reader.parameter_sources,
            base_model=reader.base_model,
            t=reader.t,
        )
        if is_own_method(spec.name) and (values := tuple(shared.items())) not in self._valid:
            method_named(spec.name).validate(**shared)
            self._valid.add(values)
        return shared, per_input if is_own_method(spec.name) else _whole_rows(info.shape, per_input)


def decide_all(
    decisions: Decisions, modules: Mapping[str, Module], definitions: Mapping[str, OutputModuleDefinition]
) -> list[TensorPlan]:
    """The plan of every tensor that the modules have, in their order."""
    config, inputs = decisions.config, decisions.inputs
    require_contract(config, inputs, definitions, decisions.unlisted)
    slots = output_slots(config, inputs, modules, definitions)
    return [decisions.decide(slot.name, slot.info, slot.names, slot.reader) for slot in slots]


def _whole_rows(
    shape: tuple[int, ...], per_input: Mapping[ModelReference, Parameters]
) -> Mapping[ModelReference, Parameters]:
    """The parameters of the inputs for a tensor of this shape.

    DELLA drops values by their ranks within a row (along the second axis, if there is one). A row of one value has no
    ranks, so tensors of such rows are merged whole: with a density of 1.
    """
    if shape[1:2] != (1,) and shape not in ((), (1,)):
        return per_input
    return {m: {**own, "density": 1.0} if "epsilon" in own else own for m, own in per_input.items()}
