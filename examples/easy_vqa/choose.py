"""Find the merge strength (lambda) of each recipe on validation questions, which no model was trained on.

    python -m examples.easy_vqa.choose
    python -m examples.easy_vqa.choose --recipes lora --methods optmerge wudi swudi aswudi tsv iso_c iso_cts

Tries the strengths that the OptMerge paper searched, {0.1, 0.3, 0.5, 0.7, 1.0, 1.5}, for every method but the weight
average, and prints the accuracies, their mean over the three question types first. `mergekit-mm sweep` solves each
merge once and writes all its strengths. The recipes in merge_yamls/ hold the best. The test questions are not touched.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml

from examples.common.commands import ROOT, sweep
from examples.easy_vqa.scores import percentages, score


def recipe(name: str, method: str | None) -> dict[str, Any]:
    """The config merge_yamls/easy_vqa_<name>.yaml, optionally with another method at its defaults."""
    config = yaml.safe_load((ROOT / f"merge_yamls/easy_vqa_{name}.yaml").read_text())
    return {**config, "merge_method": method, "parameters": {}} if method else config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["task_arithmetic", "ties", "optmerge"])
    parser.add_argument("--methods", nargs="+", default=[None], help="merge_method in the recipe's place, at defaults")
    parser.add_argument("--limit", type=int, default=1200, help="at most so many questions, a third of each type")
    arguments = parser.parse_args()
    for name in arguments.recipes:
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as scratch:
                for strength, path in sweep(recipe(name, method), Path(scratch)):
                    cells = percentages(score(path, "validation", arguments.limit))
                    mean = cells.pop("mean")[0]
                    types = ", ".join(f"{kind} {value:.1f}" for kind, (value, _) in cells.items())
                    print(f"{method or name:16} {strength}: {mean:5.1f} %   ({types})", flush=True)


if __name__ == "__main__":
    main()
