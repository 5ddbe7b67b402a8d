"""One line of evidence for each method, in Markdown, from the results that a report has written.

    python -m examples.minibench.evidence.lines examples/minibench/results

The folder is one with the `results.json` of a report. The lines are those of the section "Evidence for each method" in
docs/which-method-when.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.minibench.evidence.board import WAYS
from examples.minibench.results import FILE


def lines(record: Mapping[str, Any]) -> list[str]:
    """For each method that has a rank in some set: mean accuracy, its interval, and ranks that are not ruled out."""
    found: dict[str, list[str]] = {}
    for way, each in record["sets"].items():
        ranked = [model for model in each["models"] if model["rank"]]
        for model in ranked:
            found.setdefault(model["name"], []).append(f"{WAYS.get(way, way)}: {_told(model, len(ranked))}")
    return [f"- `{name}`: {'; '.join(told)}." for name, told in found.items()]


def _told(model: Mapping[str, Any], methods: int) -> str:
    value, low, high = (100 * each for each in model["mean"])
    _, first, last = (round(each) for each in model["rank"])
    rank = f"rank {first}" if first == last else f"rank {first} to {last}"
    return f"{value:.1f} % ({low:.1f} to {high:.1f}) {''.join(_strength(model))}, {rank} of {methods}"


def _strength(model: Mapping[str, Any]) -> Iterator[str]:
    """At which strength; the methods without one have no choice."""
    strengths = model["strengths"]
    if not strengths:
        yield "without a strength"
        return
    yield "at its best strength, " if model["setting"] == "chosen" else "at the published strength, "
    yield f"{strengths[0]:g}" if strengths[0] == strengths[-1] else f"{strengths[0]:g} to {strengths[-1]:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / FILE).exists():
        raise SystemExit(f"{folder} has no {FILE}: it is that of a report of python -m examples.minibench")
    print("\n".join(lines(json.loads((folder / FILE).read_text()))))


if __name__ == "__main__":
    main()
