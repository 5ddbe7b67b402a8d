"""The constants of `scaling: auto` that fit the strengths which validation questions have chosen.

    python -m examples.minibench.kappa              # once the stage `choice` is finished; from the repository's root
    python -m examples.minibench.kappa --quick

At a strength lambda a tensor moves lambda || tau_m || / RMS_i || tau_i || times as far as the experts moved it. The
constant of a merge is the median over its tensors, that of a method the geometric mean over its merges, each of which
is solved once more. The best strength may lie beyond an end of the grid. For `KAPPA` in mergekit_mm/methods/scaling.py.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from mergekit.options import MergeOptions

from examples.common.commands import ROOT
from examples.minibench.merging import Merge, best_strength
from examples.minibench.plan import FULL, QUICK, Products
from examples.minibench.results import read_results
from mergekit_mm.api import plan
from mergekit_mm.execution.values import values
from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.scaling import KAPPA
from mergekit_mm.tasks.compile import Compiler


def fitted(merge: Merge, strength: float) -> float:
    """The constant with which `scaling: auto` comes to `strength`, in the median over the tensors of a merge."""
    recipe = merge.recipe(strength)
    recipe["parameters"] |= {"scaling": "auto"}
    options = MergeOptions(quiet=True)
    compiler = Compiler(plan(recipe, quiet=True), options)
    for _ in values(compiler, compiler.to_deltas()):
        pass  # the tasks note the scalings that they find
    found = statistics.median(compiler.found_scalings.values.values())
    return strength * KAPPA.get(merge.method.merge_method, 1.0) / found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="of the quick variant of the benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "minibench")
    arguments = parser.parse_args()
    out, asked = arguments.out.resolve(), QUICK if arguments.quick else FULL
    products, found = Products(asked, out), dict[tuple[str, str], list[tuple[float, float]]]()
    for experts, method in products.merges():
        tries = products.asking().choice(experts, method).folder(out)
        if method.group == "method" and is_own_method(method.merge_method) and tries.exists():
            folders = [each.folder(out) for each in experts.experts]
            merge = Merge(method, experts.start.folder(out), folders, experts.base, experts.way, experts.seed)
            strength = best_strength(read_results(tries))
            found.setdefault((method.name, experts.way), []).append((fitted(merge, strength), strength))
    for (name, way), pairs in found.items():
        constants = [constant for constant, _ in pairs]
        ends = sum(strength in (min(asked.grid), max(asked.grid)) for _, strength in pairs)
        told = f"{min(constants):.2f} to {max(constants):.2f} in {len(pairs)} merges, {ends} at an end of the grid"
        print(f"{name:14} {way:5} {statistics.geometric_mean(constants):.2f}   ({told})")


if __name__ == "__main__":
    main()
