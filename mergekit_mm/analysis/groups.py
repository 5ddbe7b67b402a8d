"""Several tensors taken together, as if they were one long vector: the figures of a role, a part, a layer, a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mergekit_mm.analysis.measure import Measures, Spectrum
from mergekit_mm.analysis.places import Place
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.numerics.interaction import Interaction


@dataclass(frozen=True)
class Figures:
    """One tensor with what was measured of it. experts: the places of those that have it among all experts."""

    name: str
    role: Role
    place: Place
    shape: tuple[int, ...]
    action: str  # `merge`, `average` or `route`, as in a plan; `keep` at the base, `take` from another input
    experts: tuple[int, ...]
    measures: Measures

    def drift(self, expert: int) -> float | None:
        """|| tau || / || base || of one expert; None if it does not have the tensor, or the base's is zero."""
        if expert not in self.experts or self.measures.base <= 0:
            return None
        at = self.experts.index(expert)
        return math.sqrt(max(0.0, float(self.measures.inner[at, at])) / self.measures.base)

    def spectrum(self, expert: int) -> Spectrum | None:
        """The spectrum of one expert's task vector, if there is one."""
        spectra = self.measures.spectra
        return spectra[self.experts.index(expert)] if spectra and expert in self.experts else None


@dataclass(frozen=True, eq=False)
class Group:
    """Some tensors and their figures together. Arrays have a place for each of the N experts, or (N, N) for each pair.

    What is not known is NaN: figures of an expert that has none of the tensors, cosines with a task vector of zero.
    """

    tensors: Sequence[Figures]
    count: int  # N

    @cached_property
    def _sums(self) -> dict[str, np.ndarray]:
        names = ("inner", "changed", "equal", "one", "other")
        sums: dict[str, np.ndarray] = {name: np.zeros((self.count, self.count)) for name in names}
        sums["base"] = np.zeros(self.count)
        for tensor in self.tensors:
            own, at = tensor.measures, np.ix_(tensor.experts, tensor.experts)
            squares = np.diag(own.inner)
            sums["inner"][at] += own.inner
            sums["changed"][at] += own.changed
            sums["equal"][at] += own.equal
            sums["one"][at] += squares[:, None]  # The norms count the tensors that both of a pair have.
            sums["other"][at] += squares[None, :]
            sums["base"][list(tensor.experts)] += own.base
        return sums

    @property
    def norms(self) -> np.ndarray:
        """|| tau || of each expert (N,)."""
        return np.sqrt(np.diag(self._sums["inner"]).clip(0))

    @property
    def drift(self) -> np.ndarray:
        """|| tau || over the norm of the base's tensors that the expert has too (N,)."""
        return _divided(self.norms, np.sqrt(self._sums["base"]))

    @property
    def cosine(self) -> np.ndarray:
        """Cosines of the task vectors (N, N), over the tensors that both have."""
        return _divided(self._sums["inner"], np.sqrt(self._sums["one"] * self._sums["other"])).clip(-1, 1)

    @property
    def signs(self) -> np.ndarray:
        """Of the entries that both change, the share at which their signs are equal (N, N)."""
        return _divided(self._sums["equal"], self._sums["changed"])

    @property
    def kept(self) -> np.ndarray:
        """The share of || tau ||^2 that OptMerge's cut keeps (N,), of the matrices whose spectra are known."""
        kept, whole = np.zeros(self.count), np.zeros(self.count)
        for tensor, expert, spectrum in self._spectra():
            at = tensor.experts.index(expert)
            kept[expert] += spectrum.kept * tensor.measures.inner[at, at]
            whole[expert] += tensor.measures.inner[at, at]
        return _divided(kept, whole)

    def mean_of_spectra(self, figure: str) -> np.ndarray:
        """The mean of one field of the spectra over the matrices (N,)."""
        total, count = np.zeros(self.count), np.zeros(self.count)
        for _tensor, expert, spectrum in self._spectra():
            total[expert] += getattr(spectrum, figure)
            count[expert] += 1
        return _divided(total, count)

    def _spectra(self) -> Iterable[tuple[Figures, int, Spectrum]]:
        for tensor in self.tensors:
            for expert in tensor.experts:
                if (spectrum := tensor.spectrum(expert)) is not None:
                    yield tensor, expert, spectrum

    def overlap(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """The mean overlap of leading subspaces (N, N), of the `outputs` or the `inputs`, and what chance has."""
        share, chance, count = (np.zeros((self.count, self.count)) for _ in range(3))
        for tensor in self.tensors:
            for (i, j), shared in tensor.measures.shared.items():
                found = getattr(shared, side)
                for at in ((tensor.experts[i], tensor.experts[j]), (tensor.experts[j], tensor.experts[i])):
                    share[at] += found.share
                    chance[at] += found.chance
                    count[at] += 1
        return _divided(share, count), _divided(chance, count)

    @property
    def losses(self) -> dict[str, Interaction]:
        """The interaction of each method, summed over the matrices for which it is known."""
        found: dict[str, Interaction] = {}
        for tensor in self.tensors:
            for label, loss in tensor.measures.losses.items():
                found[label] = found.get(label, Interaction()) + loss
        return found


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotients, NaN where they are 0 / 0 or have no meaning."""
    fits = denominator > 0
    return np.where(fits, numerator / np.where(fits, denominator, 1.0), np.nan)
