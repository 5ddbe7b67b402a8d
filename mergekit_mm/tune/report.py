"""What a run leaves for people: the table of all candidates, and what can and cannot be said about the choice."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_mm.tune.figure import draw
from mergekit_mm.tune.race import Entry, Outcome, Race, by_variant
from mergekit_mm.tune.scores import estimate

_LEGEND = (
    "±: half the width of a 95 % interval, 1.96 standard errors over the questions. All tasks count alike, whatever "
    "their questions. Minus the chosen: on the questions that both were asked, one by one."
)
BEST, TABLE, NUMBERS, FIGURE, DATA = "best.yaml", "tune.md", "tune.csv", "tune.png", "tune.json"


def sentences(outcome: Outcome, race: Race, command: str) -> list[str]:
    """The choice in words, with what speaks against relying on it.

    command: the one that makes the chosen model.
    """
    chosen = outcome.chosen
    said = [f"Chosen: {chosen.candidate.label}, {race.shown(chosen.score)}. Make it by `{command}`."]
    rivals = outcome.finalists[1:]
    if not rivals:
        said.append("No other candidate was compared with it in the last round.")
    elif outcome.not_apart:
        listed = "; ".join(f"{e.candidate.label} ({race.shown(outcome.behind(e), '+')})" for e in outcome.not_apart[:5])
        more = f"; and {len(outcome.not_apart) - 5} more" if len(outcome.not_apart) > 5 else ""
        said.append(f"It is not apart by more than noise from {listed}{more}: choose among these by other reasons too.")
    else:
        said.append("The other candidates of the last round are apart from it.")
    said += _edge(outcome)
    if len(outcome.entries) > 1:
        said.append(
            f"It is the best of {len(outcome.entries)} that were tried on these questions, so expect a little less on "
            "others."
        )
    return said


def _edge(outcome: Outcome) -> list[str]:
    """A sentence if the chosen strength is the first or the last of its method's: a better one may lie beyond."""
    chosen = outcome.chosen.candidate
    grid = [e.candidate.strength for e in by_variant(outcome.entries)[chosen.variant.label]]
    if len(grid) < 2 or chosen.strength not in (grid[0], grid[-1]):
        return []
    which, other = ("smallest", "smaller") if chosen.strength == grid[0] else ("largest", "larger")
    return [f"Its strength is the {which} that was tried: try {other} ones by --strengths."]


def write_report(
    out: Path,
    outcome: Outcome,
    race: Race,
    said: Sequence[str],
    notes: Sequence[str],
    facts: Mapping[str, Any],
    title: str,
) -> None:
    """Write table, numbers, figure, all values, and the config of the chosen one.

    said: sentences on the choice, which stand in the config too. notes: others, beneath the table. facts: what the run
    depended on, by name, in types that JSON has. title: what the scores are.
    """
    out.mkdir(parents=True, exist_ok=True)
    comment = "\n".join(f"# {sentence}" for sentence in said)
    (out / BEST).write_text(f"{comment}\n{outcome.chosen.candidate.source}", encoding="utf-8")
    table = [as_markdown(outcome, race, title), "", *(f"- {each}" for each in (*said, _LEGEND, *notes)), ""]
    (out / TABLE).write_text("\n".join(table), encoding="utf-8")
    (out / NUMBERS).write_text(as_csv(outcome), encoding="utf-8")
    data = {
        "facts": facts,
        "rounds": [vars(each) for each in outcome.race],
        "candidates": [_data(e) for e in outcome.entries],
    }
    (out / DATA).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if figure := draw(outcome, race.factor, title):
        figure.savefig(out / FIGURE)


def as_markdown(outcome: Outcome, race: Race, title: str) -> str:
    """A pipe table, the best candidate first."""
    sets = list(outcome.chosen.values)
    each_set = sets if len(sets) > 1 else []
    heads = ["method", "strength", "rounds", "questions", title, "minus the chosen", *each_set]
    lines = [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for entry in outcome.entries:
        strength = "" if entry.candidate.strength is None else f"{entry.candidate.strength:g}"
        behind = "" if entry is outcome.chosen else race.shown(outcome.behind(entry), "+")
        name = f"`{entry.candidate.variant.label}`"
        cells = [f"**{name}**" if entry is outcome.chosen else name, strength, str(entry.rounds), str(_asked(entry))]
        of_sets = [race.shown(estimate({each: entry.values[each]})) for each in each_set]
        lines.append(_row([*cells, race.shown(entry.score), behind, *of_sets]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_csv(outcome: Outcome) -> str:
    """One line a candidate, all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sets = list(outcome.chosen.values)
    writer.writerow(
        ["method", "strength", "rounds", "questions", "score", "stderr", "minus the chosen", "stderr", *sets]
    )
    for entry in outcome.entries:
        score, behind = entry.score, outcome.behind(entry)
        numbers = [score.value, score.stderr, behind.value, behind.stderr, *_of_sets(entry).values()]
        shown = ["" if number is None else f"{number:.10g}" for number in (entry.candidate.strength, *numbers)]
        writer.writerow([entry.candidate.variant.label, shown[0], entry.rounds, _asked(entry), *shown[1:]])
    return text.getvalue()


def _asked(entry: Entry) -> int:
    """The questions that an entry was asked, of all sets together."""
    return sum(each is not None for own in entry.values.values() for each in own.values())


def _of_sets(entry: Entry) -> dict[str, float]:
    return {name: estimate({name: own}).value for name, own in entry.values.items()}


def _data(entry: Entry) -> dict[str, Any]:
    score = entry.score
    return {
        "method": entry.candidate.variant.method,
        "parameters": dict(entry.candidate.variant.parameters),
        "strength": entry.candidate.strength,
        "rounds": entry.rounds,
        "questions": _asked(entry),
        "score": score.value,
        "stderr": score.stderr,
        "sets": _of_sets(entry),
        "config": entry.candidate.source,
    }
