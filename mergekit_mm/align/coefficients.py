"""The way by coefficients: each matrix is the base's plus a weighted sum of the experts' deltas and the merged delta.

    W = W_0 + sum_i c_i tau_i + c_m tau_m

tau_m is what the merge method makes of the tau_i, times its scaling. All c_i are 0 and c_m is 1 at the start, which is
the merge itself. The result is a merge again: c_m goes into `scaling`, and c_i into `own_delta`, for each tensor.

The derivative by a coefficient is <dL/dW, its direction>. It is taken as soon as the gradient of a matrix is there, and
that gradient is then let go. The directions lie on disk, and one of them at a time is in memory.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.apply import OWN_DELTA
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.executors import run


class Basis:
    """The directions of one matrix, in a file that is read anew for each use."""

    def __init__(self, file: Path, experts: int) -> None:
        self.file, self.count = file, experts + 1

    def inner_products(self, gradient: Tensor) -> Tensor:
        """<gradient, direction> for each direction, in float32; the gradient (out, in) is that of the matrix."""
        wide = gradient.float()
        return torch.stack([_inner(wide, self._direction(n).to(wide.device)) for n in range(self.count)])

    def combined(self, coefficients: Tensor) -> Tensor:
        """The matrix for these coefficients, computed in float32, on their device."""
        with safe_open(str(self.file), framework="pt") as stored:
            total = stored.get_tensor("base").to(coefficients.device).float()
        for number, share in enumerate(coefficients.tolist()):
            if share:
                total = self._direction(number).to(coefficients.device).added_to(total, share)
        return total

    def _direction(self, number: int) -> TaskVector:
        with safe_open(str(self.file), framework="pt") as stored:
            if str(number) in stored.keys():
                return TaskVector.of(stored.get_tensor(str(number)))
            return TaskVector.low_rank(stored.get_tensor(f"{number}.left"), stored.get_tensor(f"{number}.right"))


def _inner(gradient: Tensor, direction: TaskVector) -> Tensor:
    """<G, L R> = <L^T G, R>: factors are not multiplied out."""
    if direction.right is None:
        return (gradient * direction.left.float()).sum()
    return ((direction.left.T @ gradient) * direction.right).sum()


class CoefficientWay:
    """A row of coefficients for each matrix of a model: those of the experts, in the plan's order, then the merge's."""

    def __init__(self, lm: MLLM, bases: Mapping[str, Basis]) -> None:
        """bases: of the matrices that are combined, by their names in the loaded model."""
        self.lm, self.model = lm, lm.model
        self._bases = list(bases.values())
        parameters = dict(lm.model.named_parameters())
        self._weights = [parameters[name] for name in bases]
        start = torch.zeros(len(bases), self._bases[0].count, device=lm.device)
        start[:, -1] = 1.0
        self.coefficients = start.requires_grad_()
        self.parameters: list[Tensor] = [self.coefficients]
        lm.model.requires_grad_(False)
        for row, weight in enumerate(self._weights):
            weight.requires_grad_(True)
            weight.register_post_accumulate_grad_hook(self._taker(row))

    def _taker(self, row: int) -> Callable[[Tensor], None]:
        """What is done with the gradient of a matrix: its share goes to the coefficients, and it is let go."""

        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            if self.coefficients.grad is None:
                self.coefficients.grad = torch.zeros_like(self.coefficients)
            self.coefficients.grad[row] += self._bases[row].inner_products(weight.grad)
            weight.grad = None

        return take

    def apply(self) -> None:
        """Write every matrix anew; it is rounded once, to the dtype of the model."""
        with torch.no_grad():
            for weight, basis, row in zip(self._weights, self._bases, self.coefficients.detach(), strict=True):
                weight.copy_(basis.combined(row))


def require_weighted(plan: MergePlan, source: str) -> None:
    """MergeError if the result of a merge cannot be written as coefficients of its method."""
    method = plan.config.merge_method
    if not is_own_method(method):
        raise MergeError(f"{method} has no `{OWN_DELTA}`: coefficients are for the methods of this package.")
    if not (yaml.safe_load(source) or {}).get("models"):
        raise MergeError("Coefficients are written under `models:`, which this config does not have.")


def store_bases(
    plan: MergePlan, names: Sequence[str], directory: Path, dtype: str, options: MergeOptions
) -> dict[str, Basis]:
    """The bases of some planned matrices, in files that are made if they are not there yet.

    names: in memory. dtype: in which dense directions are stored.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: directory / f"{name}.safetensors" for name in names}
    compiler = Compiler(plan, options)
    missing = {name: compiler.directions(plan[name], dtype) for name, file in files.items() if not file.is_file()}
    for name, tensors in run(missing, options):
        unfinished = files[name].with_suffix(".unfinished")
        save_file(tensors, unfinished)
        os.replace(unfinished, files[name])
    return {name: Basis(file, len(plan[name].experts)) for name, file in files.items()}


def recipe(plan: MergePlan, source: str, names: Sequence[str], coefficients: Tensor) -> str:
    """The config that makes the merge with these coefficients (matrices, experts + 1), as YAML.

    names: of the matrices, in memory, one a row. The config of the start is in `source`, whose comments are lost.
    """
    config = copy.deepcopy(yaml.safe_load(source))
    rows = dict(zip(names, coefficients.tolist(), strict=True))
    # A filter is any part of a name, and the first one counts: whole names, the longest first, mean one tensor each.
    ordered = sorted(rows, key=len, reverse=True)
    scaling: list[Any] = [
        {"filter": name, "value": float(plan[name].parameters["scaling"]) * rows[name][-1]} for name in ordered
    ]
    parameters = config.setdefault("parameters", {})
    parameters["scaling"] = scaling + _others(parameters.get("scaling"))
    experts = plan[names[0]].experts
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


def require_meant(plan: MergePlan, names: Sequence[str], start: MergePlan, coefficients: Tensor) -> None:
    """MergeError if the plan of a recipe has other coefficients than those that it was made from."""
    for name, row in zip(names, coefficients.tolist(), strict=True):
        shares = [plan[name].input_parameters[model].get(OWN_DELTA, 0.0) for model in plan[name].experts]
        found = [*shares, plan[name].parameters["scaling"]]
        if found != [*row[:-1], float(start[name].parameters["scaling"]) * row[-1]]:
            raise MergeError(
                f"The config has parameters of its own for {name}, below which its coefficients do not count: write "
                "`scaling` at the top level alone."
            )
