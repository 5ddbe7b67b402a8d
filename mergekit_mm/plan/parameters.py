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
from mergekit_mm.plan.modules import ALIASES
from mergekit_mm.plan.omni.composition import COMPOSITION, HOST
from mergekit_mm.plan.policies import ROLE_PARAMETERS

# The model whose processor and tokenizer files are copied: a parameter of the whole merge, not of a tensor.
SIDE_FILES = "processor_source"
OF_THE_WHOLE = (SIDE_FILES, HOST, COMPOSITION, ADAPTER_BASE, IGNORE)
OF_INPUTS = (ADAPTER_BASE,)  # may also be written for one input


def ignored(config: MergeConfiguration) -> Ignored:
    """What a config says to leave out of the inputs. MergeError for a value that is no pattern and no list of them."""
    value = (config.parameters or {}).get(IGNORE, [])
    patterns = value if isinstance(value, list) else [value]
    if wrong := [p for p in patterns if not isinstance(p, str) or not p.strip("*?. ")]:
        raise MergeError(
            f"parameter {IGNORE}: {wrong[0]!r} will not do; write parts of tensors' names, as in "
            f"`{IGNORE}: [v_head, model.extra_tower.*]`."
        )
    return Ignored(tuple(patterns))


def unknown_modules(
    config: MergeConfiguration,
    known: Collection[str],
    base: ModelReference,
    checkpoints: Mapping[ModelReference, Checkpoint],
) -> Iterator[str]:
    """A sentence for each listed module that the output does not have, `known` being its own.

    The output has the layout of the input `base`. Where another input has the module, the sentence says how to make
    that input's the layout.
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

    Misspelt names are told with what was probably meant. A parameter of another merge method passes: one line of a
    config then switches between methods.
    """
    of_methods = {p.name for method in merge_methods.registered_methods() for p in method.spec.parameters}
    own = {p.name: p for p in merge_methods.get(config.merge_method).spec.parameters}
    wide, inputs = _scopes(config)
    for scope in wide:
        for name, setting in (scope.parameters or {}).items():
            if name in OF_THE_WHOLE and scope is not config:
                yield f"parameter {name} is for the whole merge: write it under the top `parameters:`."
                continue
            yield from _unknown("parameter", name, {*of_methods, *ROLE_PARAMETERS, *OF_THE_WHOLE})
            yield from _invalid(own.get(name), setting)
    for scope in inputs:
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
        wanted = [p.name for p in own.values() if p.required and p.scope is ParameterScope.INPUT]
        if absent := [name for name in wanted if name not in (config.parameters or {})]:
            yield (
                f"{config.merge_method} merges the base model like any other: list {config.base_model} under `models:` "
                f"with its own {', '.join(absent)}, or leave out `base_model:`."
            )


def trusted_adapters(config: MergeConfiguration) -> frozenset[ModelReference]:
    """The inputs whose adapters are put on their models whatever base they name. MergeError for another value."""
    _, inputs = _scopes(config)
    named = {ref for ref in config.referenced_models() if ref.lora}
    trusted: set[ModelReference] = set()
    for scope, models in [(config, named), *((entry, {entry.model}) for entry in inputs)]:
        if (value := (scope.parameters or {}).get(ADAPTER_BASE)) is not None:
            if value != TRUST:
                raise MergeError(f"parameter {ADAPTER_BASE}: {value!r} is not known; the one value is {TRUST}.")
            trusted |= models
    return frozenset(trusted)


def resolve(spec: MergeMethodSpec, **where: Any) -> tuple[dict[str, Any], dict[ModelReference, dict[str, Any]]]:
    """mergekit's `resolve_parameters`; MergeError, for one that the method needs and was not given."""
    try:
        return resolve_parameters(spec, **where)
    except RuntimeError as error:
        if not str(error).startswith("Missing required parameter"):
            raise
        advice = f"{spec.name} needs it: write it under `parameters:`, of each model or at the top level for all."
        raise MergeError(f"{error}. {advice}") from error
    except ValidationError as error:  # each value is one that the parameter can have, but not what lies between them
        told = error.errors()[0]
        raise MergeError(
            f"{spec.name}: a gradient of {where['tensor_name']} comes to {told['input']!r}, which will not do: "
            f"{told['msg'].lower()}."
        ) from error


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


def unknown_method(name: str) -> Iterator[str]:
    """A sentence, with what was probably meant, if nobody has registered a merge method of this name."""
    return _unknown("merge method", name, {method.spec.name for method in merge_methods.registered_methods()})


def _invalid(parameter: ParameterSpec | None, setting: ParameterSetting) -> Iterator[str]:
    """A sentence for each value that the parameter cannot have, in whatever gradient or behind whatever filter."""
    if parameter is None:  # of another method
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
            told = error.errors()[0]["msg"].lower()
            yield f"parameter {parameter.name}: {setting!r} will not do; {told}."


def _unknown(what: str, name: str, known: set[str], where: str = "") -> Iterator[str]:
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else "" if where else f" Known: {', '.join(sorted(known))}."
        yield f"Unknown {what} {name!r} in the merge config{where}.{hint}"
