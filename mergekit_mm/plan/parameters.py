"""Names and values in a merge config that mergekit itself would ignore: parameters, modules, policies."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, MergeConfiguration, ParameterSetting
from mergekit.merge_methods.base import MergeMethodSpec, ParameterScope, ParameterSpec
from mergekit.parameter_resolver import resolve_parameters
from pydantic import ValidationError

from mergekit_mm.checkpoints.adapters.binding import ADAPTER_BASE, TRUST
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.ignoring import IGNORE, Ignored
from mergekit_mm.errors import MergeError
from mergekit_mm.methods.declarations import ELEMENTWISE
from mergekit_mm.plan.modules import ALIASES
from mergekit_mm.plan.omni.composition import COMPOSITION, HOST
from mergekit_mm.plan.policies import ROLE_PARAMETERS

# The parameter that names the model whose processor and tokenizer files are copied.
SIDE_FILES = "processor_source"
SPACE, SPACES = "space", ("weights", "core")  # where mergekit's element-wise methods see the deltas of adapters
OF_THE_WHOLE = (
    SIDE_FILES,
    HOST,
    COMPOSITION,
    ADAPTER_BASE,
    IGNORE,
    SPACE,
)  # parameters of the whole merge, not of a tensor
OF_INPUTS = (ADAPTER_BASE,)  # parameters of the whole merge that may also be written for one input


def ignored(config: MergeConfiguration) -> Ignored:
    """The tensors that a config leaves out of the inputs. MergeError for a value that is neither pattern nor list."""
    value = (config.parameters or {}).get(IGNORE, [])
    patterns = value if isinstance(value, list) else [value]
    if wrong := [p for p in patterns if not isinstance(p, str) or not p.strip("*?. ")]:
        raise MergeError(
            f"parameter {IGNORE}: {wrong[0]!r} will not do; write parts of tensors' names, as in "
            f"`{IGNORE}: [v_head, model.extra_tower.*]`."
        )
    return Ignored(tuple(patterns))


def merges_in_core(config: MergeConfiguration) -> bool:
    """Whether a config asks for the joint core of the adapters (`space: core`).

    Raises:
        MergeError: the parameter has another value, or the method's result does not depend on it.
    """
    space = (config.parameters or {}).get(SPACE, SPACES[0])
    if space not in SPACES:
        raise MergeError(f"parameter {SPACE}: {space!r} is not known; choose {' | '.join(SPACES)}.")
    if space == "core" and config.merge_method not in ELEMENTWISE:
        raise MergeError(
            f"parameter {SPACE}: core is for methods that look at single entries ({', '.join(ELEMENTWISE)}). "
            f"{config.merge_method} is not one of them: leave it out."
        )
    return bool(space == "core")


def unknown_modules(
    config: MergeConfiguration,
    known: Collection[str],
    base: ModelReference,
    checkpoints: Mapping[ModelReference, Checkpoint],
) -> Iterator[str]:
    """A sentence for each module under `modules:` that the output does not have; `known` are the modules that it has.

    The output has the layout of the input `base`. Where another input has the module, the sentence says how to give the
    output the layout of that input.
    """
    for name in config.modules or ():
        module = ALIASES.get(name, name)
        if module in known:
            continue
        where = f": the output has the layout of {base}, whose modules are {', '.join(known)}"
        having = [m for m, c in checkpoints.items() if any(t.role.module == module for t in c.tensors.values())]
        if having:
            yield (
                f"Unknown module {name!r} in the merge config{where}. {having[0]} has it: for its layout, make it "
                "the `base_model:`, or the model that is named first."
            )
            continue
        aliases = {alias for alias, meant in ALIASES.items() if meant in known}
        yield from _unknown("module", name, {*known, *aliases}, where)


def wrong_parameters(config: MergeConfiguration) -> Iterator[str]:
    """A sentence for each parameter that mergekit would ignore without a word, and for each useless value.

    For a misspelt name, the sentence has the name that was probably meant. A parameter of another merge method passes:
    one line of a config then switches between methods.
    """
    of_methods = {p.name for method in merge_methods.registered_methods() for p in method.spec.parameters}
    own = {p.name: p for p in merge_methods.get(config.merge_method).spec.parameters}
    for_all_inputs, for_one_input = _scopes(config)
    for scope in for_all_inputs:
        for name, setting in (scope.parameters or {}).items():
            if name in OF_THE_WHOLE and scope is not config:
                yield f"parameter {name} is for the whole merge: write it under the top `parameters:`."
                continue
            yield from _unknown("parameter", name, {*of_methods, *ROLE_PARAMETERS, *OF_THE_WHOLE})
            yield from _invalid(own.get(name), setting)
    for scope in for_one_input:
        for name, setting in (scope.parameters or {}).items():
            shared = name in own and own[name].scope is ParameterScope.SHARED
            if name in OF_INPUTS:
                continue
            if shared or name in (*ROLE_PARAMETERS, *OF_THE_WHOLE):
                yield (
                    f"parameter {name} of input {scope.model} holds for all inputs or none: "
                    "write it under `parameters:` at the top level, or of a module or slice."
                )
                continue
            yield from _unknown("parameter", name, of_methods)
            yield from _invalid(own.get(name), setting)
    if config.base_model and config.models and all(entry.model != config.base_model for entry in config.models):
        required = [p.name for p in own.values() if p.required and p.scope is ParameterScope.INPUT]
        if missing := [name for name in required if name not in (config.parameters or {})]:
            yield (
                f"{config.merge_method} merges the base model like any other: list {config.base_model} under `models:` "
                f"with its own {', '.join(missing)}, or leave out `base_model:`."
            )


def trusted_adapters(config: MergeConfiguration) -> frozenset[ModelReference]:
    """The inputs with an adapter that is not asked whether it was trained on its model (`adapter_base: trust`).

    Raises:
        MergeError: the parameter has another value.
    """
    _, entries = _scopes(config)
    adapted = {model for model in config.referenced_models() if model.lora}
    trusted: set[ModelReference] = set()
    for scope, models in [(config, adapted), *((entry, {entry.model}) for entry in entries)]:
        if (value := (scope.parameters or {}).get(ADAPTER_BASE)) is not None:
            if value != TRUST:
                raise MergeError(f"parameter {ADAPTER_BASE}: {value!r} is not known; the one value is {TRUST}.")
            trusted |= models
    return frozenset(trusted)


def resolve(spec: MergeMethodSpec, **where: Any) -> tuple[dict[str, Any], dict[ModelReference, dict[str, Any]]]:
    """mergekit's `resolve_parameters`. Returns the parameters for all inputs, and those of each input.

    Raises:
        MergeError: a parameter that the method needs is missing, or a gradient gives a value that it cannot have.
    """
    try:
        return resolve_parameters(spec, **where)
    except RuntimeError as error:
        if not str(error).startswith("Missing required parameter"):
            raise
        advice = f"{spec.name} needs it: write it under `parameters:`, of each model or at the top level for all."
        raise MergeError(f"{error}. {advice}") from error
    except ValidationError as error:  # Each value of a gradient is valid, but a value between two of them is not.
        problem = error.errors()[0]
        raise MergeError(
            f"{spec.name}: a gradient of {where['tensor_name']} comes to {problem['input']!r}, which will not do: "
            f"{problem['msg'].lower()}."
        ) from error


def unread_parameters(config: MergeConfiguration) -> list[str]:
    """The parameters in a config that only other merge methods read, so that they have no effect."""
    own = {p.name for p in merge_methods.get(config.merge_method).spec.parameters}
    given = {name for scopes in _scopes(config) for scope in scopes for name in scope.parameters or ()}
    return sorted(given - {*own, *ROLE_PARAMETERS, *OF_THE_WHOLE})


def _scopes(config: MergeConfiguration) -> tuple[list[Any], list[Any]]:
    """The parts of a config that have parameters: those that hold for all inputs, and the entries of single inputs."""
    for_all_inputs: list[Any] = [config, *(config.slices or ())]
    entries: list[Any] = list(config.models or ())
    for module in (config.modules or {}).values():
        for_all_inputs += [module, *(module.slices or ())]
        entries += module.models or ()
    return for_all_inputs, entries + [source for scope in for_all_inputs for source in getattr(scope, "sources", ())]


def unknown_method(name: str) -> Iterator[str]:
    """A sentence, with the name that was probably meant, if no merge method of this name is registered."""
    return _unknown("merge method", name, {method.spec.name for method in merge_methods.registered_methods()})


def _invalid(parameter: ParameterSpec | None, setting: ParameterSetting) -> Iterator[str]:
    """A sentence for each value that a parameter cannot have, in gradients and behind filters too.

    parameter: None for a parameter of another method, of which nothing is known.
    """
    if parameter is None:
        return
    if isinstance(setting, list):
        for part in setting:
            yield from _invalid(parameter, part)
    elif isinstance(setting, ConditionalParameter):
        yield from _invalid(parameter, setting.value)
    else:
        try:
            value = parameter.validate(setting)
            if isinstance(value, float) and not math.isfinite(value):
                yield f"parameter {parameter.name}: {setting!r} will not do; it must be finite."
        except ValidationError as error:
            requirement = error.errors()[0]["msg"].lower()
            yield f"parameter {parameter.name}: {setting!r} will not do; {requirement}."


def _unknown(kind: str, name: str, known: set[str], where: str = "") -> Iterator[str]:
    """A sentence on a name that is not known, with the closest known one.

    where: the end of the sentence; with it, the known names are not listed.
    """
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else "" if where else f" Known: {', '.join(sorted(known))}."
        yield f"Unknown {kind} {name!r} in the merge config{where}.{hint}"
