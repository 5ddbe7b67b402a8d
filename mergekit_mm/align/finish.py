"""What an alignment leaves: the model, the adapter beside it, the report, and a section of the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.align.samples import Split
from mergekit_mm.align.training import Result
from mergekit_mm.merge import run_multimodal_merge

FOLDER = "align"  # of the output, with the report and the adapter

_SECTION = """
## Alignment

{how} Divergence from the experts' own answers, in nats per token, on the samples that were held back:

| expert | samples trained on | held back | before | after |
|---|---|---|---|---|
{rows}

The samples, which have no labels:

{sources}

The SHA-256 of each (its prompt and its media), and where it came from, are in `{folder}/report.json`.
"""


def fold(start: Path, adapter: Path, out: Path, options: MergeOptions) -> None:
    """Write the model `start` with an adapter folded into it, each weight rounded once to the dtype that it has."""
    config: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": str(start),
        "models": [{"model": f"{start}+{adapter}", "parameters": {"weight": 1.0}}],
    }
    quiet = options.model_copy(update={"quiet": True, "write_model_card": False})
    run_multimodal_merge(MergeConfiguration.model_validate(config), str(out), quiet, None)


def with_adapter(start: Path, adapter: Path, out: Path, options: MergeOptions) -> None:
    """Write the model `start` with an adapter folded in, the adapter beside it, and the recipe of the start."""
    fold(start, adapter, out, options)
    shutil.copytree(adapter, out / FOLDER)
    for name in ("README.md", "mergekit_config.yml"):
        if (start / name).is_file():
            shutil.copyfile(start / name, out / name)
    recipe = out / "mergekit_config.yml"
    if recipe.is_file():
        comment = f"# The start of an alignment: to the model that this makes, the adapter in {FOLDER}/ was added.\n"
        recipe.write_text(comment + recipe.read_text(encoding="utf-8"), encoding="utf-8")


def write_report(
    out: Path,
    names: tuple[str, str],
    how: str,
    splits: Mapping[str, Split],
    settings: Mapping[str, Any],
    result: Result,
) -> None:
    """Write `report.json`, and the section of the model card if there is a card.

    names: of the start, which heads the card so far, and of the output. how: one sentence on what was done. settings:
    all that the result depends on, by name.
    """
    report = {
        "settings": settings,
        "samples": digests(splits),
        "from": {name: own.places for name, own in splits.items()},
        "history": [
            {"step": step, "divergence": dict(zip(splits, found, strict=True))} for step, found in result.history
        ],
        "best": result.best,
        "ended": result.why or "all steps were made",
    }
    (out / FOLDER).mkdir(exist_ok=True)
    (out / FOLDER / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    card = out / "README.md"
    if card.is_file():
        columns = zip(splits.items(), result.before, result.after, strict=True)
        rows = [
            f"| {name} | {len(own.trained)} | {len(own.held_back)} | {before:.4f} | {after:.4f} |"
            for (name, own), before, after in columns
        ]
        sources = [f"- {name}: {own.sources}" for name, own in splits.items()]
        section = _SECTION.format(how=how, rows="\n".join(rows), sources="\n".join(sources), folder=FOLDER)
        text = card.read_text(encoding="utf-8").replace(f"\n# {names[0]}\n", f"\n# {names[1]}\n", 1)
        card.write_text(text + section, encoding="utf-8")


def digests(splits: Mapping[str, Split]) -> dict[str, dict[str, list[str]]]:
    """The digests of the samples of each expert."""
    return {
        name: {part: [sample.digest for sample in getattr(own, part)] for part in ("trained", "held_back")}
        for name, own in splits.items()
    }
