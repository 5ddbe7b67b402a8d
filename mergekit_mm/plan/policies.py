"""Policies: whether the tensors of a role are kept at the base, averaged over the experts, or merged.

A policy is a parameter of the merge with a role's name, such as `vision_tower: average`, at any level of the config. A
new policy is a member of `Policy` and an action in `Decisions.decide`, which `merge_yamls/README.md` describes.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from mergekit.common import ModelReference
from mergekit.config import ConfigReader, evaluate_setting
from mergekit.merge_methods import MergeMethod

from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method


class Policy(str, Enum):
    """The source of a role's tensors. In a config of an omni model, the name of a donor is none of these policies but
    chooses the owner of a modality: `plan.omni.composition` reads it."""

    BASE = "base"  # the tensor of the base model
    AVERAGE = "average"  # the mean of the experts; the base is left out
    MERGE = "merge"  # the result of the merge method


class ChosenPolicy(NamedTuple):
    """A policy, and the reason for it; empty if the method merges the tensor, which needs none."""

    policy: Policy
    reason: str


ROLE_PARAMETERS = tuple(role.value for role in Role if role is not Role.LANGUAGE_MODEL)


def policy_of(role: Role, tensor: str, method: str, reader: ConfigReader) -> ChosenPolicy:
    """The policy that a config sets for a tensor, or the method's default.

    The plugin's methods merge the matrices of the language model and keep the rest at the base, as the OptMerge
    paper does; mergekit's own methods merge everything, as they do without the plugin.
    """
    for scope in reader.parameter_sources():
        if role is not Role.LANGUAGE_MODEL and scope and role.value in scope:
            value = evaluate_setting(tensor, scope[role.value], reader.t, validate=lambda v: _parse(role, v))
            if value is not None:
                return ChosenPolicy(Policy(value), f"the config has `{role.value}: {Policy(value).value}`")
    if role is Role.LANGUAGE_MODEL or not is_own_method(method):
        return ChosenPolicy(Policy.MERGE, "")
    return ChosenPolicy(Policy.BASE, f"{method} merges only the language model unless `{role.value}` says otherwise")


def _parse(role: Role, value: Any) -> Policy:
    try:
        return Policy(value)
    except ValueError as error:
        choices = " | ".join(policy.value for policy in Policy)
        raise MergeError(
            f"parameter {role.value}: {value!r} is not a policy; choose {choices} (or, for an omni model, one of its "
            "donors, spelled as under `models:`)."
        ) from error


def why_undefined(
    method: MergeMethod,
    role: Role,
    inputs: list[ModelReference],
    base_model: ModelReference | None,
    layout_model: ModelReference,
) -> str | None:
    """The reason for which a method cannot merge a tensor of a role, given the inputs that have it; None if it can.

    In an omni model, for example, the base model may have no tower of that kind, over which deltas could be taken.

    Args:
        inputs: the inputs that have the tensor.
        layout_model: the input from which the policy `base` takes it.
    """
    try:
        method.validate_inputs(inputs, base_model if base_model in inputs else None)
    except ValueError as error:
        return (
            f"{method.spec.name} cannot merge the {role.value} of {', '.join(map(str, inputs))}: {error} of the same "
            f"kind. Choose `parameters: {role.value}: average`, or `base` for that of {layout_model}."
        )
    return None
