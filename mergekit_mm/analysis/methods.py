"""What a merge method would make of the task vectors of one matrix, in memory, for the loss that it would leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mergekit import merge_methods
from pydantic import ValidationError

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.methods.apply import AUTO, OWN_DELTA
from mergekit_mm.methods.declarations import DRAWING, ELEMENTWISE, WEIGHTED_SUMS
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum
from mergekit_mm.tune.candidates import SCALING, Variant, if_not_said

DEFAULT = ("linear", "task_arithmetic", "tsv", "optmerge")


@dataclass(frozen=True)
class Method:
    """A merge method as it is tried. label: as the user wrote it. parameters: those that count, also where left out."""

    label: str
    name: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, variant: Variant, all_adapters: bool) -> Method:
        """A variant of a method that needs nothing but task vectors; weights are 1 where it does not say them.

        Raises:
            MergeError: the method needs more, draws random numbers, or merges adapters alone, which not all experts
                are; or a parameter does not exist or has a value that will not do.
        """
        name, chosen = variant.method, dict(variant.parameters)
        known = {each.name: each for each in merge_methods.get(name).spec.parameters if each.name != OWN_DELTA}
        if unknown := sorted(chosen.keys() - known.keys()):
            raise MergeError(f"--methods: {name} has no parameter {unknown[0]!r} here; it has {', '.join(known)}.")
        try:
            chosen = {each: known[each].validate(value) for each, value in chosen.items()}
        except ValidationError as error:
            raise MergeError(f"--methods: {variant.label}: {error.errors()[0]['msg']}.") from error
        if is_own_method(name):
            method = method_named(name)
            if method.needs_factors and not all_adapters:
                raise MergeError(f"--methods: {name} merges the factors of adapters, and not all experts are adapters.")
            method.validate(**chosen)
            return cls(variant.label, name, chosen)
        if name not in WEIGHTED_SUMS and (name not in ELEMENTWISE or name in DRAWING):
            choice = ", ".join(sorted({*WEIGHTED_SUMS, *ELEMENTWISE} - set(DRAWING)))
            raise MergeError(
                f"--methods: {name} draws random numbers, or is no function of task vectors alone, so it has no loss "
                f"here: choose {choice}, or a method of this package."
            )
        defaults = {each.name: each.default for each in known.values() if not each.required}
        return cls(variant.label, name, {**defaults, **if_not_said(name), **chosen})

    @property
    def is_sum(self) -> bool:
        """Whether it costs next to nothing."""
        return self.name in WEIGHTED_SUMS

    def merged(self, task_vectors: Sequence[TaskVector]) -> TaskVector:
        """The merged delta (out, in) of one matrix, its strength included; factored where the method keeps factors."""
        parameters = dict(self.parameters)
        if is_own_method(self.name):
            scaling = parameters.pop(SCALING, 1.0)
            method = method_named(self.name)
            delta = method.delta(task_vectors, "of one matrix", **parameters)
            factor = method.automatic_scaling(delta, task_vectors) if scaling == AUTO else float(scaling)
            return delta if factor == 1.0 else weighted_sum([delta], [factor])
        if self.is_sum:
            given = [float(parameters["weight"])] * len(task_vectors)
            return weighted_sum(task_vectors, WEIGHTED_SUMS[self.name].weights(parameters, given))
        deltas = [each.dense(torch.float32) for each in task_vectors]
        inputs = [torch.zeros_like(deltas[0]), *deltas]
        return TaskVector.of(merge_methods.merge_tensors(inputs, self.name, parameters=parameters, base_index=0))
