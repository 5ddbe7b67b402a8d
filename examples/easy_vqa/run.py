"""Merge three experts of a small vision-language model by the stock `mergekit-yaml`, and evaluate the merges.

    python -m examples.easy_vqa.run                              # four merges, all test questions
    python -m examples.easy_vqa.run --recipes ties --limit 1500    # one merge, 1500 questions
    python -m examples.easy_vqa.run --lora                         # the LoRA experts in the table as well

Runs from anywhere. Merged models and the table (Markdown and JSON) go to out/easy_vqa/, or to --out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from examples.common.commands import ROOT, lm_eval, mergekit_yaml
from examples.common.scores import Score, from_results, write_results
from examples.easy_vqa.data import TYPES, Question, by_type, questions, subset
from examples.easy_vqa.scores import GROUP, TASK_FOLDER, TASKS, blind_score, model_arguments, percentages, table

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
RECIPES = ("linear", "task_arithmetic", "ties", "optmerge")
EXAMPLE_IMAGES = 3


def merge(recipe: str, out: Path) -> Path:
    """Merge by merge_yamls/easy_vqa_<recipe>.yaml into out/<recipe>/."""
    return mergekit_yaml(Path(f"merge_yamls/easy_vqa_{recipe}.yaml"), out / recipe)


def answers(model: Path, out: Path, limit: int | None) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """lm-eval's results and samples of a model on the test questions, at most `limit` of each type."""
    return lm_eval(model_arguments(model), GROUP, TASK_FOLDER, out, limit)


def said_by(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[tuple[int, str], str]:
    """A model's replies by image number and question."""
    return {
        (int(Path(s["doc"]["image"]["path"]).stem), s["doc"]["prompt"].removeprefix("<image>")): s["filtered_resps"][0]
        for each in samples.values()
        for s in each
    }


def examples(asked: Sequence[Question]) -> list[Question]:
    """A colour, a shape and a negated question about each of the first test images that have all three."""
    by_image: dict[int, list[Question]] = {}
    chosen = set(asked)
    for row in (row for row in questions("test") if row in chosen):
        by_image.setdefault(row.image, []).append(row)
    picked: list[Question] = []
    for rows in by_image.values():
        kinds = by_type(rows)
        negated = [row for row in kinds["yesno"] if row.negated]
        if kinds["color"] and kinds["shape"] and negated and len(picked) < len(TYPES) * EXAMPLE_IMAGES:
            picked += [kinds["color"][0], kinds["shape"][0], negated[0]]
    return picked


def transcript(said: Mapping[str, Sequence[str]], rows: Sequence[Question]) -> str:
    """Questions, true answers and the reply of each model, aligned."""
    head = ["image", "question", "answer", *said]
    body = [[str(row.image), row.text, row.answer, *(said[name][n] for name in said)] for n, row in enumerate(rows)]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in [head, *body])


def verdict(results: Mapping[str, Mapping[str, Score]], merges: Sequence[str]) -> str:
    """The merge with the best mean, and the merges whose intervals overlap with its interval."""
    means = {name: percentages(results[name])["mean"] for name in merges}
    best = max(means, key=lambda name: means[name][0])
    close = [
        name for name in merges if name != best and means[name][0] + means[name][1] > means[best][0] - means[best][1]
    ]
    tie = f"; within the intervals: {', '.join(close)}" if close else ""
    return f"best mean of the merges: {best}, {means[best][0]:.1f} %{tie}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    experts = parser.add_mutually_exclusive_group()
    experts.add_argument("--lora", action="store_true", help="score the LoRA experts too (base + adapter)")
    experts.add_argument("--no-experts", action="store_true", help="score the base and the merges only")
    parser.add_argument("--limit", type=int, help="at most so many test questions, a third of each type (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "easy_vqa")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(f"merging {len(arguments.recipes)} times, from {ROOT}:", flush=True)
    with ThreadPoolExecutor(2) as pool:  # most of a small merge is starting up, on one core
        merged = dict(
            zip(arguments.recipes, pool.map(lambda recipe: merge(recipe, out), arguments.recipes), strict=True)
        )

    rows = subset(questions("test"), arguments.limit)
    ways = () if arguments.no_experts else ("expert", "lora") if arguments.lora else ("expert",)
    paths = {"base": MODELS / "base"}
    paths |= {f"{way} {kind}": MODELS / f"{way}_{kind}" for way in ways for kind in TYPES}
    paths |= {f"merge {recipe}": path for recipe, path in merged.items()}
    print(f"asking every model {len(rows)} test questions about {len({row.image for row in rows})} images:", flush=True)
    results, replies = {"without looking": blind_score(rows)}, {}
    share = arguments.limit and -(-arguments.limit // len(TYPES))
    with ThreadPoolExecutor(2) as pool:
        answered = pool.map(lambda path: answers(path, out / "lm_eval" / path.name, share), paths.values())
        for name, (found, samples) in zip(paths, answered, strict=True):
            results[name], replies[name] = from_results(found, TASKS), said_by(samples)
            mean = percentages(results[name])["mean"][0]
            print(f"  lm_eval --model mllm --tasks {GROUP} ...   {name}: {mean:.1f} %", flush=True)
    asked = examples(rows)
    said = {
        name: [replies[name][row.image, row.text] for row in asked]
        for name in paths
        if name == "base" or name.startswith("merge")
    }
    merges = [name for name in results if name.startswith("merge")]
    closing = verdict(results, merges)
    print(f"\n{table(results)}\n\n{closing}\n\n{transcript(said, asked)}\n\n{out / 'results.md'}, results.json")
    introduction = f"{len(rows)} test questions; ± is half the width of the 95 % interval."
    write_results(out, results, introduction, table(results, True), [f"{closing[0].upper()}{closing[1:]}."], len(rows))


if __name__ == "__main__":
    main()
