"""The constants of `scaling: auto` from chosen strengths."""

from __future__ import annotations

import math
import statistics

import pytest
from end_to_end import checkpoint, experts, merge, tensors, with_method

from examples.minibench.kappa import fitted
from examples.minibench.merging import Merge
from examples.minibench.methods import Method, Setting


def test_the_constant_is_how_far_the_merge_moves_beside_an_expert() -> None:
    base, found = checkpoint("llava"), experts("llava")
    chosen = Merge(Method("a row", "tsv", {"full": Setting(0.3)}), base, found, 0, "full", 0)
    before, merged = tensors(base), merge(with_method("tsv", base, found, parameters={"scaling": 0.7})).tensors
    others = [tensors(path) for path in found]
    moved = []
    for name in (n for n in merged if "language_model" in n and merged[n].ndim == 2 and "layers" in n):
        far = [float((each[name].double() - before[name].double()).norm()) for each in (merged, *others)]
        moved.append(far[0] / math.sqrt(statistics.fmean(x * x for x in far[1:])))
    assert len(moved) > 10
    assert fitted(chosen, 0.7) == pytest.approx(statistics.median(moved), rel=0.05)
    assert fitted(chosen, 1.4) == pytest.approx(2 * fitted(chosen, 0.7), rel=1e-6)
