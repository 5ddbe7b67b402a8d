"""Find the merge strength (lambda) of each recipe on validation questions, which no model was trained on.

    python examples/easy_vqa/choose.py

Tries the strengths that the OptMerge paper searched, {0.1, 0.3, 0.5, 0.7, 1.0, 1.5}, for every method but the weight
average, by the stock `mergekit-yaml` on a copy of the recipe, and prints the accuracies, their mean over the three
question types first. The recipes in merge_yamls/ hold the best ones. The test questions are not touched.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml
from run import ROOT, mergekit_yaml
from vqa_data import questions, subset
from vqa_score import percentages, score

STRENGTH = {"task_arithmetic": "lambda", "ties": "lambda", "optmerge": "scaling"}  # the parameter's name
GRID = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)


def mean_accuracy(recipe: str, strength: float, limit: int, scratch: Path) -> str:
    """Merge with this strength; the mean validation accuracy and those of the types, as text."""
    config = yaml.safe_load((ROOT / f"merge_yamls/easy_vqa_{recipe}.yaml").read_text())
    config["parameters"][STRENGTH[recipe]] = strength
    changed = scratch / "recipe.yaml"
    changed.write_text(yaml.safe_dump(config))
    mergekit_yaml(changed, scratch / "merged")
    cells = percentages(score(scratch / "merged", "validation", subset(questions("validation"), limit)))
    return f"{cells.pop('mean')[0]:5.1f} %   ({', '.join(f'{kind} {value:.1f}' for kind, (value, _) in cells.items())})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=STRENGTH, default=list(STRENGTH))
    parser.add_argument("--limit", type=int, default=1200, help="at most so many questions, a third of each type")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in arguments.recipes:
            for strength in GRID:
                told = mean_accuracy(recipe, strength, arguments.limit, Path(scratch))
                print(f"{recipe:16} {STRENGTH[recipe]} {strength}: {told}", flush=True)


if __name__ == "__main__":
    main()
