"""Coefficients as a merge config, by which stock mergekit makes the merge without the samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml
from torch import Tensor

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.apply import OWN_DELTA
from mergekit_mm.plan.merge_plan import MergePlan


def require_weighted(plan: MergePlan, source: str) -> None:
    """MergeError if the result of a merge cannot be written as coefficients of its method."""
    method = plan.config.merge_method
    if not is_own_method(method):
        raise MergeError(f"{method} has no `{OWN_DELTA}`: coefficients are for the methods of this package.")
    if not (yaml.safe_load(source) or {}).get("models"):
        raise MergeError("Coefficients are written under `models:`, which this config does not have.")


def recipe(plan: MergePlan, source: str, scalings: Mapping[str, float], coefficients: Tensor) -> str:
    """The config that makes the merge with these coefficients (matrices, experts + 1), as YAML.

    scalings: that of the merged delta at the start, by the names in memory of the matrices, one a row. The config of
    the start is in `source`, whose comments are lost.
    """
    config = copy.deepcopy(yaml.safe_load(source))
    rows = dict(zip(scalings, coefficients.tolist(), strict=True))
    # A filter is any part of a name, and the first one counts: whole names, the longest first, mean one tensor each.
    ordered = sorted(rows, key=len, reverse=True)
    scaling: list[Any] = [{"filter": name, "value": scalings[name] * rows[name][-1]} for name in ordered]
    parameters = config.setdefault("parameters", {})
    parameters["scaling"] = scaling + _others(parameters.get("scaling"))
    experts = plan[ordered[0]].experts
    entries = [entry for entry in config["models"] if entry["model"] != config.get("base_model")]
    for number, (model, entry) in enumerate(zip(experts, entries, strict=True)):
        own = entry.setdefault("parameters", {}) or {}
        filters = [{"filter": plan[name].inputs[model], "value": rows[name][number]} for name in ordered]
        entry["parameters"] = {**own, OWN_DELTA: filters + _others(own.get(OWN_DELTA))}
    return yaml.safe_dump(config, sort_keys=False)


def _others(setting: Any) -> list[Any]:
    """A setting of the config as filters that hold for the tensors without one of their own."""
    if setting is None:
        return []
    if isinstance(setting, list) and all(isinstance(each, dict) for each in setting):
        return setting
    return [{"value": setting}]


def require_meant(plan: MergePlan, scalings: Mapping[str, float], coefficients: Tensor) -> None:
    """MergeError if the plan of a recipe has other coefficients than those that it was made from."""
    for (name, scaling), row in zip(scalings.items(), coefficients.tolist(), strict=True):
        shares = [plan[name].input_parameters[model].get(OWN_DELTA, 0.0) for model in plan[name].experts]
        found = [*shares, plan[name].parameters["scaling"]]
        if found != [*row[:-1], scaling * row[-1]]:
            raise MergeError(
                f"The config has parameters of its own for {name}, below which its coefficients do not count: write "
                "`scaling` at the top level alone."
            )
