"""From a merge config to its candidates: the same experts merged by other methods, each at several strengths."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from mergekit import merge_methods
from mergekit.config import MergeConfiguration

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method
from mergekit_mm.plan.config import read_config
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan
from mergekit_mm.plan.parameters import unknown_method

STRENGTHS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)  # those that the OptMerge paper searched for every method
SCALING, LAMBDA = "scaling", "lambda"
# What mergekit's methods get where the config does not say it: weights that leave the strength to `lambda` alone, and
# the share of each delta that the TIES paper keeps.
_IF_NOT_SAID: dict[str, dict[str, Any]] = {"ties": {"density": 0.2}}


@dataclass(frozen=True)
class Variant:
    """A merge method with parameters of its own, which count before those of the config."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """As on the command line."""
        return ":".join([self.method, *(f"{name}={value}" for name, value in self.parameters.items())])


@dataclass(frozen=True)
class Candidate:
    """A merge that is tried: the text of its config, and what people call it. strength: None of a method without."""

    variant: Variant
    strength: float | None
    source: str

    @property
    def label(self) -> str:
        return self.variant.label if self.strength is None else f"{self.variant.label} at {self.strength:g}"

    @property
    def config(self) -> MergeConfiguration:
        return read_config(self.source, f"the config of {self.label}")


def parse_variant(text: str) -> Variant:
    """The variant that `METHOD[:PARAMETER=VALUE]...` means; values as in YAML.

    Raises:
        MergeError: there is no such method, or a part is no assignment.
    """
    method, *assignments = text.strip().split(":")
    if wrong := list(unknown_method(method)):
        raise MergeError(wrong[0].replace(" in the merge config", " in --methods"))
    parameters = {}
    for each in assignments:
        name, is_one, value = each.partition("=")
        if not is_one or not name:
            raise MergeError(f"--methods: {each!r} of {text!r} is no PARAMETER=VALUE.")
        parameters[name] = yaml.safe_load(value)
    return Variant(method, parameters)


def default_variants(plan: MergePlan) -> list[Variant]:
    """The method of the config itself, and those of different kinds that suit its experts."""
    experts = [model for model in plan.inputs.checkpoints if model != plan.config.base_model]
    are_adapters = all(model.lora and plan.inputs.plain(model) == plan.config.base_model for model in experts)
    presets = ["modality"] if isinstance(plan, OmniPlan) else ["lora"] if are_adapters else ["full", "lora"]
    names = ["task_arithmetic", "ties", "tsv", "swudi"] + (["dc_merge", "robust_merge"] if are_adapters else [])
    variants = [Variant(plan.config.merge_method), *map(Variant, names)]
    return variants + [Variant("optmerge", {"preset": preset}) for preset in presets]


def strength_parameter(method: str) -> str | None:
    """The parameter by which a method's delta is multiplied; None if it has none."""
    if is_own_method(method):
        return SCALING
    return LAMBDA if any(each.name == LAMBDA for each in merge_methods.get(method).spec.parameters) else None


def candidates(source: str, variant: Variant, strengths: Sequence[float]) -> list[Candidate]:
    """A variant at each strength; one candidate if its method has no strength.

    source: the text of the config, whose experts, policies and other parameters all candidates have.

    Raises:
        MergeError: the config has a strength of its own in a part of it, where that of the candidates does not count.
    """
    name = strength_parameter(variant.method)
    tree = yaml.safe_load(source)
    if name is not None and any(name in (part.get("parameters") or {}) for part in _parts(tree)):
        raise MergeError(
            f"The config has `{name}` in a slice or a module, below which the strengths of {variant.method} do not "
            "count: write it at the top level alone."
        )
    grid: Sequence[float | None] = list(dict.fromkeys(strengths)) if name else [None]
    return [Candidate(variant, strength, _source(tree, variant, name, strength)) for strength in grid]


def _source(tree: Mapping[str, Any], variant: Variant, name: str | None, strength: float | None) -> str:
    made = copy.deepcopy(dict(tree))
    made["merge_method"] = variant.method
    parameters = {**(made.get("parameters") or {}), **variant.parameters}
    if not is_own_method(variant.method):
        for each, value in if_not_said(variant.method).items():
            if each not in parameters and not any(each in (part.get("parameters") or {}) for part in _inputs(made)):
                parameters[each] = value
    if name is not None and strength is not None:
        parameters[name] = _multiplied(parameters.get(name), strength)
    made["parameters"] = parameters
    return yaml.safe_dump(made, sort_keys=False)


def if_not_said(method: str) -> dict[str, Any]:
    """The parameters of a method of mergekit that a candidate gets if the config does not have them."""
    needed = {each.name for each in merge_methods.get(method).spec.parameters if each.required}
    return {**({"weight": 1.0} if "weight" in needed else {}), **_IF_NOT_SAID.get(method, {})}


def _multiplied(setting: Any, strength: float) -> Any:
    """A setting of the strength at another strength, which takes the place of a number and multiplies a gradient's.

    Within filters, too, numbers are multiplied, as one filter's may differ from another's.
    """
    if not isinstance(setting, list):
        return strength
    return [
        {**each, "value": _times(each["value"], strength)} if isinstance(each, dict) else _times(each, strength)
        for each in setting
    ]


def _times(setting: Any, strength: float) -> Any:
    return [_times(each, strength) for each in setting] if isinstance(setting, list) else setting * strength


def _inputs(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All parts of a config that may have parameters, but for the whole."""
    yield from _parts(tree)
    for holder in (tree, *(tree.get("modules") or {}).values()):
        yield from holder.get("models") or ()
        for piece in holder.get("slices") or ():
            yield from piece.get("sources") or ()


def _parts(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a config whose parameters hold for all inputs: modules and slices."""
    modules = (tree.get("modules") or {}).values()
    yield from modules
    for holder in (tree, *modules):
        yield from holder.get("slices") or ()
