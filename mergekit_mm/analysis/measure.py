"""The figures of one tensor: how far and where experts went from the base, and how their task vectors lie together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch

from mergekit_mm.analysis.methods import Method
from mergekit_mm.numerics.descent import Descent
from mergekit_mm.numerics.interaction import Interaction, interactions
from mergekit_mm.numerics.rank_rules import adaptive_rank, effective_rank, stable_rank
from mergekit_mm.numerics.relations import Overlap, Singular, inner_products, overlap, signs, singular
from mergekit_mm.numerics.task_vector import TaskVector, square_norm_of

_POINTS = 24  # singular values of a spectrum that are kept, at places that are evenly spaced on a logarithmic scale


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one expert's task vector; of a stack of matrices, the means over those that it changes.

    effective: exp of the entropy of the singular values (Roy and Vetterli). stable: || tau ||_F^2 / || tau ||_2^2.
    most: the number of directions that hold 99 % of the squared norm. kept: the share of the squared norm in the
    directions that OptMerge keeps. points: (place from 1, singular value over the largest).
    """

    effective: float
    stable: float
    most: float
    kept: float
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Shared:
    """How much of two experts' leading directions is common, of the outputs (left) and of the inputs (right)."""

    outputs: Overlap
    inputs: Overlap


@dataclass(frozen=True)
class Measures:
    """Figures of one tensor; N experts have it, in the order of the plan.

    base: squared norm of the base's tensor. inner (N, N): inner products of the task vectors. changed, equal (N, N):
    entries at which two task vectors are not zero, and those at which their signs are equal. The rest is of matrices
    alone, and empty where it was not asked for: rank, the k of OptMerge; spectra, None for an expert that changed
    nothing; shared, by the pair; losses, by the method's label.
    """

    base: float
    inner: np.ndarray
    changed: np.ndarray
    equal: np.ndarray
    rank: int | None = None
    spectra: tuple[Spectrum | None, ...] = ()
    shared: dict[tuple[int, int], Shared] = field(default_factory=dict)
    losses: dict[str, Interaction] = field(default_factory=dict)


def measure(
    base: torch.Tensor,
    task_vectors: Sequence[TaskVector],
    is_matrix: bool,
    with_spectra: bool,
    methods: Sequence[Method],
) -> Measures:
    """The figures of one tensor of any shape.

    is_matrix: whether it is a matrix (out, in), or a stack of matrices, that methods treat as such. methods: those
    whose losses are wanted. Sums over the matrices of a stack are taken one matrix at a time.
    """
    count = len(task_vectors)
    inner, changed, equal = (np.zeros((count, count)) for _ in range(3))
    spectra = _Spectra(task_vectors[0].shape[-2:], count) if with_spectra and is_matrix else None
    losses: dict[str, Interaction] = {}
    for matrices in _matrices(task_vectors):
        inner += inner_products(matrices).cpu().numpy()
        of_signs = signs(matrices)
        changed += of_signs.changed.cpu().numpy()
        equal += of_signs.equal.cpu().numpy()
        if spectra is not None:
            spectra.add(matrices)
        if methods and is_matrix:
            merged = [method.merged(matrices) for method in methods]
            for method, found in zip(methods, interactions(matrices, merged), strict=True):
                losses[method.label] = losses.get(method.label, Interaction()) + found
    square = square_norm_of(TaskVector.of(base))
    if spectra is None:
        return Measures(square, inner, changed, equal, losses=losses)
    return Measures(square, inner, changed, equal, spectra.rank, spectra.spectra(), spectra.shared(), losses)


def _matrices(task_vectors: Sequence[TaskVector]) -> Iterator[Sequence[TaskVector]]:
    """The task vectors themselves, or those of each matrix of a stack in turn."""
    if len(task_vectors[0].shape) != 3:
        return iter([task_vectors])
    return zip(*(each.matrices() for each in task_vectors), strict=True)


class _Spectra:
    """Spectra and subspaces of a tensor's matrices of one shape, collected one matrix after the other."""

    def __init__(self, shape: Sequence[int], count: int) -> None:
        self.rank = max(1, Descent().rank(shape, count))  # OptMerge itself takes the mean where it would keep nothing
        size = min(shape)
        self._places = np.unique(np.geomspace(1, size, min(_POINTS, size)).round().astype(int))
        self._of_experts: list[list[tuple[float, ...]]] = [[] for _ in range(count)]
        self._points: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._of_pairs: dict[tuple[int, int], list[Shared]] = {pair: [] for pair in combinations(range(count), 2)}

    def add(self, task_vectors: Sequence[TaskVector]) -> None:
        """The figures of one matrix."""
        vectors = self.rank if len(task_vectors) > 1 else 0
        found = [singular(each, vectors) for each in task_vectors]
        for number, one in enumerate(found):
            if len(one.values):
                self._of_experts[number].append(self._figures(one))
                self._points[number].append(self._spectrum(one))
        for (i, j), pairs in self._of_pairs.items():
            outputs, inputs = overlap(found[i].left, found[j].left), overlap(found[i].right, found[j].right)
            if outputs and inputs:
                pairs.append(Shared(outputs, inputs))

    def _figures(self, found: Singular) -> tuple[float, ...]:
        values = found.values
        squares = values.square()
        kept = float(squares[: self.rank].sum() / squares.sum())
        most = adaptive_rank("cumvar_0.99", squares, ())
        return effective_rank(values), stable_rank(values), float(most), kept

    def _spectrum(self, found: Singular) -> np.ndarray:
        filled = np.zeros(self._places[-1])
        filled[: len(found.values)] = (found.values / found.values[0]).cpu().numpy()
        return filled[self._places - 1]

    def spectra(self) -> tuple[Spectrum | None, ...]:
        made: list[Spectrum | None] = []
        for figures, points in zip(self._of_experts, self._points, strict=True):
            if not figures:
                made.append(None)
                continue
            heights = np.mean(points, axis=0).tolist()
            curve = tuple((int(at), height) for at, height in zip(self._places, heights, strict=True) if height)
            effective, stable, most, kept = np.mean(figures, axis=0).tolist()
            made.append(Spectrum(effective, stable, most, kept, curve))
        return tuple(made)

    def shared(self) -> dict[tuple[int, int], Shared]:
        """The means over matrices that both experts of a pair change."""
        found = {}
        for pair, several in self._of_pairs.items():
            if several:
                means = (np.mean([getattr(one, side) for one in several], axis=0) for side in ("outputs", "inputs"))
                found[pair] = Shared(*(Overlap(*map(float, mean)) for mean in means))
        return found
