"""What an alignment leaves beside the model: the report, and a section of the model card."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from mergekit_mm.align.job import FOLDER, Job
from mergekit_mm.align.training import Result

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


def write_report(job: Job, out: Path, how: str, result: Result) -> None:
    """Write `report.json`, and the section of the model card if there is a card.

    how: one sentence on what was done.
    """
    report = {
        "settings": asdict(job.settings),
        "samples": job.digests,
        "from": {name: own.places for name, own in job.splits.items()},
        "history": [
            {"step": step, "divergence": dict(zip(job.splits, found, strict=True))} for step, found in result.history
        ],
        "best": result.best,
        "fell": result.fell,
        "ended": result.why or "all steps were made",
    }
    (out / FOLDER).mkdir(exist_ok=True)
    (out / FOLDER / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    card = out / "README.md"
    if card.is_file():
        columns = zip(job.splits.items(), result.before, result.after, strict=True)
        rows = [
            f"| {name} | {len(own.trained)} | {len(own.held_back)} | {before:.4f} | {after:.4f} |"
            for (name, own), before, after in columns
        ]
        sources = [f"- {name}: {own.sources}" for name, own in job.splits.items()]
        section = _SECTION.format(how=how, rows="\n".join(rows), sources="\n".join(sources), folder=FOLDER)
        title = f"# {job.out.resolve().name}"  # in place of the start's name
        text = re.sub(r"^# .*$", lambda _: title, card.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
        card.write_text(text + section, encoding="utf-8")
