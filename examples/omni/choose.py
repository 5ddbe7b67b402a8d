"""Find the strength of each method on validation questions, about media that no model was trained on.

    python -m examples.omni.choose
    python -m examples.omni.choose --methods optmerge_modality --count 300

Tries the strengths that the OptMerge paper searched, and prints the mean accuracies about one medium and about two; the
best mean of both goes into METHODS of run.py (and merge_yamls/omni.yaml). No test questions are asked here.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers.utils import logging

from examples.common.commands import ROOT, sweep
from examples.omni.run import METHODS, MODELS, recipe
from examples.omni.scores import COLUMNS, percentages, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "linear"])
    parser.add_argument("--lora", action="store_true", help="the donors as LoRAs")
    parser.add_argument("--count", type=int, default=100, help="validation questions of each of the six sorts")
    parser.add_argument("--models", type=Path, default=ROOT / MODELS, help="made by train.py")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    for method in arguments.methods:
        config = recipe(method, arguments.models.resolve(), arguments.lora)
        with tempfile.TemporaryDirectory() as scratch:
            for strength, path in sweep(config, Path(scratch)):
                cells = percentages(score(path, "validation", arguments.count))
                each = ", ".join(f"{column} {cells[column][0]:.0f}" for column in COLUMNS)
                one, two = cells["mean of one"][0], cells["mean of two"][0]
                print(
                    f"{method:18} {strength}: {(one + two) / 2:5.1f}   one {one:.1f}, two {two:.1f}   ({each})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
