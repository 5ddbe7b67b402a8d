"""What is done with the tensors of each role: kept at the base, averaged over the experts, or merged."""

from __future__ import annotations

import difflib
import math
from enum import Enum
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, ConfigReader, MergeConfiguration, ParameterSetting, evaluate_setting
from mergekit.merge_methods import MergeMethod
from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from pydantic import ValidationError

from mergekit_mm.architecture.roles import Role
from mergekit_mm.methods import catalogue
from mergekit_mm.planning.composition import COMPOSITION, HOST
from mergekit_mm.planning.modules import ALIASES


class Policy(str, Enum):
    """Where the tensors of a role come from."""

    BASE = "base"
    AVERAGE = "average"  # the mean of the experts, the base left out
    MERGE = "merge"  # the merge method


# not a tensor's policy, but a parameter of the whole merge: which model's processor and tokenizer files are copied
SIDE_FILES = "processor_source"
OF_THE_WHOLE = (SIDE_FILES, HOST, COMPOSITION)
ROLE_PARAMETERS = tuple(role.value for role in Role if role is not Role.LANGUAGE_MODEL)


def is_own_method(name: str) -> bool:
    """Whether a merge method is the plugin's: it then defaults to the paper's choice of tensors."""
    return any(method.name == name for method in catalogue())


def policy_of(role: Role, tensor: str, method: str, reader: ConfigReader) -> Policy:
    """The policy that a config sets for a tensor, or the method's default.

    The plugin's methods merge the matrices of the language model and keep the rest at the base, as the OptMerge
    paper does; mergekit's own methods merge everything, as they do without the plugin.
    """
    for scope in reader.parameter_sources():
        if role is not Role.LANGUAGE_MODEL and scope and role.value in scope:
            value = evaluate_setting(tensor, scope[role.value], reader.t, validate=lambda v: _parse(role, v))
            if value is not None:
                return Policy(value)
    if role is Role.LANGUAGE_MODEL or not is_own_method(method):
        return Policy.MERGE
    return Policy.BASE


def _parse(role: Role, value: Any) -> Policy:
    try:
        return Policy(value)
    except ValueError:
        choices = " | ".join(policy.value for policy in Policy)
        raise ValueError(
            f"parameter {role.value}: {value!r} is not a policy; choose {choices} (or, for an omni model, one of its "
            "donors, spelled as under `models:`)."
        ) from None


def why_undefined(
    method: MergeMethod,
    role: Role,
    inputs: list[ModelReference],
    base_model: ModelReference | None,
    bringer: ModelReference,
) -> str | None:
    """Why a method does not take these inputs, which alone have a tensor of a role, or None.

    In an omni model, say, deltas of towers are over nothing if the base model has none of their kind.
    """
    try:
        method.validate_inputs(inputs, base_model if base_model in inputs else None)
    except ValueError as error:
        return (
            f"{method.spec.name} cannot merge the {role.value} of {', '.join(map(str, inputs))}: {error} of the same "
            f"kind. Choose `parameters: {role.value}: average`, or `base` for that of {bringer}."
        )
    return None


def check_parameters(config: MergeConfiguration, modules: list[str]) -> None:
    """Refuse misspelled parameters and modules, which mergekit itself would ignore without a word.

    A parameter of another merge method passes: one line of a config then switches between methods.

    Raises:
        ValueError: naming the parameter or module, and what was probably meant; or a value that is of no use.
    """
    of_methods = {p.name for method in merge_methods.registered_methods() for p in method.spec.parameters}
    own = {p.name: p for p in merge_methods.get(config.merge_method).spec.parameters}
    wide, inputs = _scopes(config)
    for scope in wide:
        for name, setting in (scope.parameters or {}).items():
            if name in OF_THE_WHOLE and scope is not config:
                raise ValueError(f"parameter {name} is for the whole merge: write it under the top `parameters:`.")
            _require_known("parameter", name, {*of_methods, *ROLE_PARAMETERS, *OF_THE_WHOLE})
            _require_valid(own.get(name), setting)
    for scope in inputs:
        for name, setting in (scope.parameters or {}).items():
            shared = name in own and own[name].scope is ParameterScope.SHARED
            if shared or name in (*ROLE_PARAMETERS, *OF_THE_WHOLE):
                raise ValueError(
                    f"parameter {name} of input {scope.model} holds for all inputs or none: "
                    "write it under `parameters:` at the top level, or of a module or slice."
                )
            _require_known("parameter", name, of_methods)
            _require_valid(own.get(name), setting)
    for name in config.modules or ():
        _require_known("module", name, {*modules, *ALIASES})
    if config.base_model and config.models and all(entry.model != config.base_model for entry in config.models):
        wanted = [p.name for p in own.values() if p.required and p.scope is ParameterScope.INPUT]
        if absent := [name for name in wanted if name not in (config.parameters or {})]:
            raise ValueError(
                f"{config.merge_method} merges the base model like any other: list {config.base_model} under `models:` "
                f"with its own {', '.join(absent)}, or leave out `base_model:`."
            )


def unread_parameters(config: MergeConfiguration) -> list[str]:
    """The parameters in a config that are another merge method's, and so do nothing."""
    own = {p.name for p in merge_methods.get(config.merge_method).spec.parameters}
    given = {name for scopes in _scopes(config) for scope in scopes for name in scope.parameters or ()}
    return sorted(given - {*own, *ROLE_PARAMETERS, *OF_THE_WHOLE})


def _scopes(config: MergeConfiguration) -> tuple[list[Any], list[Any]]:
    """The parts of a config that have parameters: those that hold for all inputs, and the inputs."""
    wide: list[Any] = [config, *(config.slices or ())]
    inputs: list[Any] = list(config.models or ())
    for module in (config.modules or {}).values():
        wide += [module, *(module.slices or ())]
        inputs += module.models or ()
    return wide, inputs + [source for scope in wide for source in getattr(scope, "sources", ())]


def require_known_method(name: str) -> None:
    """ValueError, with what was probably meant, for a merge method that nobody has registered."""
    _require_known("merge method", name, {method.spec.name for method in merge_methods.registered_methods()})


def _require_valid(parameter: ParameterSpec | None, setting: ParameterSetting) -> None:
    """ValueError for a value that the parameter cannot have, in whatever gradient or behind whatever filter."""
    if parameter is None:  # of another method
        return
    if isinstance(setting, list):
        for part in setting:
            _require_valid(parameter, part)
    elif isinstance(setting, ConditionalParameter):
        _require_valid(parameter, setting.value)
    else:
        try:
            value = parameter.validate(setting)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"parameter {parameter.name}: {setting!r} will not do; it must be finite.")
        except ValidationError as error:
            told = error.errors()[0]["msg"].lower()
            raise ValueError(f"parameter {parameter.name}: {setting!r} will not do; {told}.") from None


def _require_known(what: str, name: str, known: set[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(sorted(known))}."
        raise ValueError(f"Unknown {what} {name!r} in the merge config.{hint}")
