"""The decision for each output tensor: the policy that the config sets, unless the inputs rule it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration, OutputModuleDefinition
from mergekit.merge_methods import BasePolicy, MergeMethod

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.methods.apply import OWN_DELTA
from mergekit_mm.methods.declarations import refused_values
from mergekit_mm.plan.constants import Constants
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.modules import Module
from mergekit_mm.plan.parameters import SPACE, merges_in_core, resolve
from mergekit_mm.plan.policies import Policy, policy_of, why_undefined
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, TensorPlan
from mergekit_mm.plan.walk import OutputSlot, output_slots, require_contract

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

    def decide(self, slot: OutputSlot) -> TensorPlan:
        """The plan of one output tensor."""
        policy, reason = self._policy(slot)
        if policy is Policy.BASE:
            return self._keep(slot, reason)
        if policy is Policy.AVERAGE:
            return TensorPlan(slot.name, slot.info, slot.inputs, Average(), slot.base, reason=reason)
        shared, per_input = self._parameters(slot)
        self._require_factors(slot)
        action = Merge(self.config.merge_method, self._is_merged_in_core(slot))
        return TensorPlan(slot.name, slot.info, slot.inputs, action, slot.base, shared, per_input)

    def _policy(self, slot: OutputSlot) -> tuple[Policy, str]:
        """The policy that the config asks for, with its reason; or BASE, with the reason why that one cannot hold."""
        info, base, inputs, role = slot.info, slot.base, slot.inputs, slot.info.role
        if role.module in self.unlisted:
            return Policy.BASE, f"the config does not list the module {role.module}"
        policy, reason = policy_of(role, slot.name, self.config.merge_method, slot.reader)
        if policy is Policy.BASE:
            return policy, reason
        for model in slot.listed:
            self.asked[model].add(info.name)
        if policy is Policy.AVERAGE and not any(model != base for model in inputs):
            return Policy.BASE, "no expert has it"
        if self.constants.is_constant(slot.name, info, inputs):
            return Policy.BASE, "no merge can be made of integers, or of one factor of a product"
        if policy is Policy.MERGE:
            if len(inputs) < min(len(slot.listed), 2):
                return Policy.BASE, "no other input has it"
            if self._is_untouched(slot):
                return Policy.BASE, "no adapter changes it"
            layout_model = self.inputs.layout_model(info.name)
            some_lack_it = len(inputs) < len(slot.listed)
            if some_lack_it and (why := why_undefined(self.method, role, list(inputs), base, layout_model)):
                self.undefined[role.value] = why
                return Policy.BASE, why
        return policy, reason

    def _is_merged_in_core(self, slot: OutputSlot) -> bool:
        """Whether the config asks for the joint core of the adapters, and all of them have factors of this matrix.

        Matrices whose rows belong to tokens are left out, as rows may move.

        Raises:
            MergeError: the config asks for it, and an input is more than an adapter of the base model.
        """
        if not merges_in_core(self.config):
            return False
        ranks = self._ranks(slot, f"parameter {SPACE}: core")
        return len(slot.info.shape) == 2 and slot.info.vocabulary_axis is None and None not in ranks.values()

    def _require_factors(self, slot: OutputSlot) -> None:
        """MergeError unless the method can do with whole matrices, or all experts are adapters with factors."""
        name = self.config.merge_method
        if not is_own_method(name) or not method_named(name).needs_factors or len(slot.info.shape) not in (2, 3):
            return
        ranks = self._ranks(slot, name)
        if len(slot.info.shape) == 3:  # the ranks of stacks are known when they are read
            return
        for model, rank in ranks.items():
            if rank is None:
                raise MergeError(
                    f"{name} merges the factors of adapters, and {model} changes {slot.name} by more than factors: "
                    "keep its role as in the base, or choose another method."
                )
        if len(different := {rank: model for model, rank in ranks.items() if rank}) > 1:
            told = ", ".join(f"{rank} ({model})" for rank, model in different.items())
            raise MergeError(f"{name} merges adapters of one rank; those of {slot.name} have {told}.")

    def _ranks(self, slot: OutputSlot, asking: str) -> dict[ModelReference, int | None]:
        """The rank of each expert's factors for a tensor, as `Inputs.adapter_rank` has it.

        Raises:
            MergeError: an expert is more than an adapter of the base; `asking` is what would need it to be one.
        """
        experts = {model: own for model, own in slot.inputs.items() if model != slot.base}
        for model in experts:
            if not model.lora or self.inputs.plain(model) != slot.base:
                raise MergeError(
                    f"{asking} is for adapters of {slot.base}, written as {slot.base}+ADAPTER, and {model} is none."
                )
        return {model: self.inputs.adapter_rank(model, own) for model, own in experts.items()}

    def _is_untouched(self, slot: OutputSlot) -> bool:
        """Whether all inputs are adapters of the base model, none of which changes this tensor: every delta is zero."""
        needs_base = self.method.spec.contract.base is BasePolicy.REQUIRED
        one_model = {self.inputs.plain(model) for model in slot.inputs} == {slot.base} and len(slot.inputs) > 1
        return needs_base and one_model and not any(self.inputs.adapts(*own) for own in slot.inputs.items())

    def _keep(self, slot: OutputSlot, reason: str) -> TensorPlan:
        """The base model's tensor; if the base does not have it, that of the input in whose layout it is."""
        inputs, layout_model = slot.inputs, self.inputs.layout_model(slot.info.name)
        kept = next((model for model in (slot.base, layout_model) if model in inputs), next(iter(inputs), layout_model))
        inputs.setdefault(kept, self.inputs.names[kept][slot.info.name])
        return TensorPlan(slot.name, slot.info, inputs, Keep(kept), slot.base, reason=reason)

    def _parameters(self, slot: OutputSlot) -> tuple[Parameters, Mapping[ModelReference, Parameters]]:
        """The method's parameters for this tensor: those for all inputs, and those of each input.

        Raises:
            MergeError: a parameter is missing, or has a value that the method does not accept.
        """
        spec = self.method.spec
        shared, per_input = resolve(
            spec,
            tensor_name=slot.name,
            inputs=slot.inputs,
            sources=slot.reader.parameter_sources,
            base_model=slot.base,
            t=slot.reader.t,
        )
        if is_own_method(spec.name) and (values := tuple(shared.items())) not in self._valid:
            method_named(spec.name).validate(**shared)
            self._valid.add(values)
        if is_own_method(spec.name):
            return shared, {
                model: {n: v for n, v in own.items() if v or n != OWN_DELTA} for model, own in per_input.items()
            }
        of_inputs = _whole_rows(slot.info.shape, per_input)
        why = refused_values(spec.name, shared, list(of_inputs.values())) if slot.info.dtype.is_floating_point else None
        if why is not None:
            raise MergeError(
                f"{spec.name} cannot merge {slot.name}: {why} Look at its parameters, or keep the tensor as in the "
                "base by its role's policy."
            )
        return shared, of_inputs


def decide_all(
    decisions: Decisions, modules: Mapping[str, Module], definitions: Mapping[str, OutputModuleDefinition]
) -> list[TensorPlan]:
    """The plan of every tensor that the modules have, in their order."""
    config, inputs = decisions.config, decisions.inputs
    require_contract(config, inputs, definitions, decisions.unlisted)
    return [decisions.decide(slot) for slot in output_slots(config, inputs, modules, definitions)]


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
