"""Find the strength of each method on validation questions, about media that no model was trained on.

    python examples/omni/choose.py
    python examples/omni/choose.py --methods optmerge_modality --count 300

Tries the strengths that the OptMerge paper searched, and prints the mean accuracies about one medium and about two; the
best mean of both goes into METHODS of run.py (and merge_yamls/omni.yaml). No test questions are asked here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from omni_score import COLUMNS, percentages, score
from run import METHODS, MODELS, ROOT, STRENGTH, recipe
from transformers.utils import logging

GRID = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)


def swept(method: str, models: Path, scratch: Path, lora: bool) -> Iterator[tuple[float, Path]]:
    """The method's merge at each strength, solved once."""
    config, out = scratch / f"{method}.yaml", scratch / method
    config.write_text(yaml.safe_dump(recipe(method, models, lora, **{STRENGTH.get(method, "scaling"): 1.0})))
    strengths = ",".join(map(str, GRID))
    command = [sys.executable, "-m", "mergekit_mm", "sweep", str(config), str(out), "--quiet", "--scaling", strengths]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for strength in GRID:
        yield strength, out / f"scaling_{strength:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "linear"])
    parser.add_argument("--lora", action="store_true", help="the donors as LoRAs")
    parser.add_argument("--count", type=int, default=100, help="validation questions of each of the six sorts")
    parser.add_argument("--models", type=Path, default=ROOT / MODELS, help="made by train.py")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        for method in arguments.methods:
            for strength, path in swept(method, arguments.models.resolve(), Path(scratch), arguments.lora):
                cells = percentages(score(path, "validation", arguments.count))
                each = ", ".join(f"{column} {cells[column][0]:.0f}" for column in COLUMNS)
                one, two = cells["mean of one"][0], cells["mean of two"][0]
                print(
                    f"{method:18} {strength}: {(one + two) / 2:5.1f}   one {one:.1f}, two {two:.1f}   ({each})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
