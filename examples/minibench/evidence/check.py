"""Whether a fresh run of the quick variant agrees with the results that were committed.

    python -m examples.minibench.evidence.check out/evidence-check/report-quick examples/minibench/results/quick

Both are folders with the `results.json` of a report. A merge agrees if each of its two mean accuracies lies in the
interval of the other. On one machine the two are equal; training on other hardware rounds differently, so that experts
differ somewhat. The exit code is 1 if a merge differs or is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.common.scores import aligned
from examples.minibench.results import FILE

AGREES, DIFFERS, MISSING, NEW = "agrees", "DIFFERS", "MISSING", "new, not compared"


def compared(fresh: Mapping[str, Any], committed: Mapping[str, Any]) -> Iterator[list[str]]:
    """For each merge: its set, its name, both means in percent, and whether they agree."""
    for way in dict.fromkeys([*committed["sets"], *fresh["sets"]]):
        new, old = (_merges(each, way) for each in (fresh, committed))
        for name in dict.fromkeys([*old, *new]):
            told = [_percent(each.get(name)) for each in (new, old)]
            yield [way, name, *told, _verdict(new.get(name), old.get(name))]


def other_questions(fresh: Mapping[str, Any], committed: Mapping[str, Any]) -> list[str]:
    """The sets that were asked other numbers of questions, or have other runs, so that nothing can be compared."""
    return [
        way
        for way in committed["sets"].keys() & fresh["sets"].keys()
        if any(fresh["sets"][way][part] != committed["sets"][way][part] for part in ("questions", "runs"))
    ]


def _merges(record: Mapping[str, Any], way: str) -> dict[str, list[float]]:
    models = record["sets"].get(way, {"models": []})["models"]
    return {f"{each['name']}, {each['setting']}": each["mean"] for each in models if each["kind"] == "merge"}


def _verdict(new: list[float] | None, old: list[float] | None) -> str:
    if old is None:
        return NEW
    if new is None:
        return MISSING
    return AGREES if old[1] <= new[0] <= old[2] and new[1] <= old[0] <= new[2] else DIFFERS


def _percent(mean: list[float] | None) -> str:
    if mean is None:
        return "-"
    value, low, high = (100 * each for each in mean)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _read(folder: Path, how: str) -> dict[str, Any]:
    try:
        return json.loads((folder / FILE).read_text())
    except OSError:
        raise SystemExit(f"{folder} has no {FILE}: {how}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fresh", type=Path)
    parser.add_argument("committed", type=Path)
    arguments = parser.parse_args()
    committed = _read(arguments.committed, "nothing to compare with; commit the report of a run of --quick there first")
    fresh = _read(arguments.fresh, "make it by python -m examples.minibench --quick")
    if sets := other_questions(fresh, committed):
        raise SystemExit(f"{', '.join(sets)}: not the same questions and runs; compare two runs of --quick")
    rows = list(compared(fresh, committed))
    print(aligned([["set", "merge", "here", "committed", ""], *rows], markdown=False))
    wrong = sum(row[-1] in (DIFFERS, MISSING) for row in rows)
    print(f"\n{len(rows)} merges, {wrong} of which do not agree")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
