"""Score checkpoints or LoRA adapters of this example on the easy-VQA questions.

    python examples/easy_vqa/evaluate.py examples/easy_vqa/models/base out/easy_vqa/ties --json scores.json

A question counts as right if the most likely next token is the answer: what greedy `generate()` would say first. All
test questions: color 1280, shape 1257, yes/no 7136. Intervals are 95 % Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from vqa_data import questions, subset
from vqa_score import as_json, blind_score, score, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="model or adapter directories")
    parser.add_argument("--base", type=Path, help="base of the adapters (default: the directory `base` beside each)")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test")
    parser.add_argument("--limit", type=int, help="at most so many questions, a third of each type (default: all)")
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    arguments = parser.parse_args()
    rows = subset(questions(arguments.split), arguments.limit)
    started = time.monotonic()
    results = {"without looking": blind_score(rows)}
    for path in arguments.checkpoints:
        results[str(path)] = score(path, arguments.split, rows, path.name, arguments.base)
    print(f"{len(rows)} {arguments.split} questions, 95 % intervals, {time.monotonic() - started:.0f} s")
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(results), indent=2) + "\n")


if __name__ == "__main__":
    main()
