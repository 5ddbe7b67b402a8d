"""Find the merge strength (lambda) of each recipe on validation questions, which no model was trained on.

    python examples/easy_vqa/choose.py
    python examples/easy_vqa/choose.py --recipes lora --methods optmerge wudi swudi aswudi tsv iso_c iso_cts

Tries the strengths that the OptMerge paper searched, {0.1, 0.3, 0.5, 0.7, 1.0, 1.5}, for every method but the weight
average, and prints the accuracies, their mean over the three question types first. `mergekit-mm sweep` solves each
merge once and writes all its strengths. The recipes in merge_yamls/ hold the best. The test questions are not touched.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from vqa_commands import ROOT
from vqa_score import percentages, score

STRENGTH = {"task_arithmetic": "lambda", "ties": "lambda"}  # the parameter's name; `scaling` in this package's methods
GRID = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)


def swept(recipe: str, method: str | None, scratch: Path) -> Iterator[tuple[float, Path]]:
    """The recipe's merge at each strength, optionally by another method at its defaults."""
    config = yaml.safe_load((ROOT / f"merge_yamls/easy_vqa_{recipe}.yaml").read_text())
    if method:
        config["merge_method"], config["parameters"] = method, {}
    config["parameters"][STRENGTH.get(config["merge_method"], "scaling")] = 1.0
    changed, out = scratch / "recipe.yaml", scratch / f"{recipe}_{method}"
    changed.write_text(yaml.safe_dump(config))
    strengths = ",".join(map(str, GRID))
    command = [sys.executable, "-m", "mergekit_mm", "sweep", str(changed), str(out), "--quiet", "--scaling", strengths]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for strength in GRID:
        yield strength, out / f"scaling_{strength:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["task_arithmetic", "ties", "optmerge"])
    parser.add_argument("--methods", nargs="+", default=[None], help="merge_method in the recipe's place, at defaults")
    parser.add_argument("--limit", type=int, default=1200, help="at most so many questions, a third of each type")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in arguments.recipes:
            for method in arguments.methods:
                for strength, path in swept(recipe, method, Path(scratch)):
                    cells = percentages(score(path, "validation", arguments.limit))
                    mean = cells.pop("mean")[0]
                    types = ", ".join(f"{kind} {value:.1f}" for kind, (value, _) in cells.items())
                    print(f"{method or recipe:16} {strength}: {mean:5.1f} %   ({types})", flush=True)


if __name__ == "__main__":
    main()
