"""The way by coefficients: each matrix is the base's plus a weighted sum of the experts' deltas and the merged delta.

    W = W_0 + sum_i c_i tau_i + c_m tau_m

tau_m is what the merge method makes of the tau_i, times its scaling. All c_i are 0 and c_m is 1 at the start, which is
the merge itself. The result is a merge again: c_m goes into `scaling`, and c_i into `own_delta`, for each tensor.

With the experts' deltas alone there is no c_m, and c_i = sigmoid(a_i), 0.1 at the start: the parametrisation of Expert
Merging (arXiv 2509.25712).

The derivative by a coefficient is <dL/dW, its direction>. It is taken as soon as the gradient of a matrix is there, and
that gradient is then let go. The directions lie on disk, and one of them at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mergekit_mm.align.basis import Basis, store_bases
from mergekit_mm.align.inputs import in_model
from mergekit_mm.align.job import Job
from mergekit_mm.align.recipe import recipe, require_meant
from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.execution.settings import from_environment
from mergekit_mm.merge import plan_merge, run_multimodal_merge
from mergekit_mm.plan.config import read_config

START = 0.1  # the share of each expert's delta in a start without a merged delta


class CoefficientWay:
    """A row of coefficients for each matrix of a model: those of the experts, in the plan's order, then the merge's."""

    def __init__(self, lm: MLLM, bases: Mapping[str, Basis], merged: bool = True) -> None:
        """bases: of the matrices that are combined, by their names in the loaded model. merged: whether the last
        direction of each is the merged delta; without it, all coefficients go through a sigmoid."""
        self.lm, self.model, self._merged = lm, lm.model, merged
        self.bases = list(bases.values())
        parameters = dict(lm.model.named_parameters())
        self._weights = [parameters[name] for name in bases]
        self._start = torch.zeros(len(bases), self.bases[0].count, device=lm.device)
        if merged:
            self._start[:, -1] = 1.0
            self._trained = self._start.clone().requires_grad_()
        else:
            self._start.fill_(START)
            self._trained = self._start.logit().requires_grad_()
        self.parameters: list[Tensor] = [self._trained]
        lm.model.requires_grad_(False)
        for row, weight in enumerate(self._weights):
            weight.requires_grad_(True)
            weight.register_post_accumulate_grad_hook(self._taker(row))

    @property
    def coefficients(self) -> Tensor:
        """The coefficients (matrices, directions), in float32."""
        return self._trained if self._merged else self._trained.sigmoid()

    def _taker(self, row: int) -> Callable[[Tensor], None]:
        """What is done with the gradient of a matrix: its share goes to the coefficients, and it is let go."""

        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            share = self.bases[row].inner_products(weight.grad)
            weight.grad = None
            if not self._merged:
                value = self._trained.detach()[row].sigmoid()
                share *= value * (1 - value)
            if self._trained.grad is None:
                self._trained.grad = torch.zeros_like(self._trained)
            self._trained.grad[row] += share

        return take

    def distance(self) -> Tensor:
        """The mean distance of the coefficients from their start."""
        return (self.coefficients - self._start).abs().mean()

    def apply(self) -> None:
        """Write every matrix anew; it is rounded once, to the dtype of the model."""
        with torch.no_grad():
            for weight, basis, row in zip(self._weights, self.bases, self.coefficients, strict=True):
                weight.copy_(basis.combined(row))


def prepare(job: Job, lm: MLLM) -> CoefficientWay:
    """The way for a loaded start, whose directions are stored.

    Raises:
        MergeError: no matrix is changed by all experts.
    """
    names, merged = combined_matrices(job), has_merged(job)
    job.tell(f"coefficients: {len(names)} matrices with {len(job.experts) + merged} each; their directions are stored")
    dtype = str(lm.model.dtype).removeprefix("torch.")
    folder = job.directions / f"{job.settings.directions}-{dtype}"
    bases = store_bases(job.plan, names, folder, dtype, job.quiet, merged)
    return CoefficientWay(lm, {in_model(lm, name): basis for name, basis in bases.items()}, merged)


def has_merged(job: Job) -> bool:
    """Whether the merged delta is one of the directions."""
    return job.settings.directions == "merge"


def combined_matrices(job: Job) -> list[str]:
    """The names in memory of the matrices that get coefficients: those that all experts have.

    Raises:
        MergeError: there are none.
    """
    names = [name for name in job.matrices if len(job.plan[name].experts) == len(job.experts)]
    if not names:
        raise MergeError("No matrix that this merge changes is in all of its experts, so none can have coefficients.")
    return names


@dataclass(frozen=True)
class Coefficients:
    """What was learnt: the coefficients (matrices, experts + 1), those of the merged delta in the last column.

    scalings: those of the merged delta at the start, by the matrices' names in memory.
    """

    values: Tensor
    scalings: Mapping[str, float]
    how = "The coefficients of the config were learnt."

    @classmethod
    def of(cls, way: CoefficientWay, job: Job) -> Coefficients:
        """The coefficients that a way has now."""
        values = way.coefficients.detach().cpu()
        if not has_merged(job):
            values = torch.cat([values, torch.zeros(len(values), 1)], dim=1)
        return cls(values, dict(zip(combined_matrices(job), (basis.scaling for basis in way.bases), strict=True)))

    def write(self, job: Job, out: Path) -> None:
        """Run the merge with these coefficients; its config is among the files of the output."""
        text = recipe(job.plan, job.source, self.scalings, self.values)
        config = read_config(text, "the config with coefficients")
        require_meant(plan_merge(config, job.options, text), self.scalings, self.values)
        run_multimodal_merge(config, str(out), job.quiet, text, replace(from_environment(), keeps=False))
