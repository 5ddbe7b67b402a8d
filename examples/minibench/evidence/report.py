"""The report: Markdown, figures, and the numbers as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.minibench.evidence import figures
from examples.minibench.evidence.aligned import draws_of, over_draws
from examples.minibench.evidence.aligned_claims import aligned_claims
from examples.minibench.evidence.aligned_section import aligned_section, aligned_sentences
from examples.minibench.evidence.arrange import arranged, ways_of
from examples.minibench.evidence.board import Board, Groups, Rows
from examples.minibench.evidence.claims import Claim, claims
from examples.minibench.evidence.figure_experts import gains, task_vectors
from examples.minibench.evidence.preconditions import Precondition, preconditions
from examples.minibench.evidence.record import SCORES, write_record
from examples.minibench.evidence.sentences import Pair, resolution, sentences, warning
from examples.minibench.evidence.statistics import RESAMPLES
from examples.minibench.evidence.style import save
from examples.minibench.evidence.tables import (
    ablation_table,
    claim_table,
    main_table,
    precondition_table,
    ranking_table,
    relation_table,
    run_table,
)
from examples.minibench.evidence.task_vectors import Relation
from examples.minibench.results import FILE, Result

PACKAGES = ("mergekit", "mergekit-mm", "lm-eval", "torch", "transformers", "peft", "numpy")
REPORT = "report.md"


@dataclass(frozen=True)
class About:
    """How the results were made.

    looks: how often test questions were asked of a model. seconds: of CPU, by stage. missing: what is not made yet, in
    words. settings: all that the results depend on, for the record.
    """

    command: str
    looks: int = 1
    seconds: Mapping[str, float] = field(default_factory=dict)
    missing: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(
    results: Sequence[Result],
    folder: Path,
    about: About,
    rows: Rows | None = None,
    relations: Sequence[Relation] = (),
    groups: Groups | None = None,
    resamples: int = RESAMPLES,
) -> Path:
    """Write `report.md`, its figures, `results.json` and, if it is small, `scores.npz`. Returns the path of the first.

    Args:
        results: of all ways of training, on validation and on test questions; of merges that learned from samples,
            those of every draw.
        rows: the order of the methods and the rows of ablations.
        relations: of the experts' task vectors, means over runs.
        groups: for each column of test questions the picture of each, as questions about one are alike.
        resamples: of the questions, for each interval.

    ValueError: there are no results on test questions.
    """
    pairs: list[Pair] = []
    found = over_draws(results)
    for way in ways_of(found):
        if board := arranged(found, way, "test", rows, groups, resamples):
            pairs.append((board, arranged(found, way, "validation", rows, None, resamples)))
    if not pairs:
        raise ValueError("there are no results on test questions to report")
    folder.mkdir(parents=True, exist_ok=True)
    checked = [each for board, _ in pairs for each in preconditions(board)]
    boards = [board for board, _ in pairs]
    claimed = [each for board, validation in pairs for each in claims(board, validation)]
    with_draws = [(board, draws_of(board, results)) for board in boards]
    of_aligned = [each for board, draws in with_draws for each in aligned_claims(board, draws)]
    told = [*sentences(pairs, claimed), *aligned_sentences(with_draws)]
    made = {
        "date": datetime.date.today().isoformat(),
        "command": about.command,
        "versions": {name: version(name) for name in PACKAGES},
        "looks": about.looks,
        "seconds": {name: round(seconds) for name, seconds in about.seconds.items()},
        "missing": list(about.missing),
        "settings": about.settings,
    }
    write_record(folder, made, boards, checked, [*claimed, *of_aligned], results)
    parts = [_first_page(pairs, told, checked, claimed, about), *(_of_way(folder, *pair, relations) for pair in pairs)]
    parts += [aligned_section(folder, with_draws, of_aligned), _together(folder, boards)]
    parts += [_made(made, about, pairs, folder)]
    (folder / REPORT).write_text("\n\n".join(part for part in parts if part) + "\n")
    return folder / REPORT


def _first_page(
    pairs: Sequence[Pair],
    told: Sequence[str],
    checked: Sequence[Precondition],
    claimed: Sequence[Claim],
    about: About,
) -> str:
    loud = warning(checked)
    lines = ["# The benchmark in miniature: results"]
    if about.missing:
        lines.append(f"**Not all of it is made yet.** Missing are {'; '.join(about.missing)}.")
    lines += [loud] if loud else []
    lines += ["## What to do", "\n".join(f"{at}. {each}" for at, each in enumerate(told, 1))]
    lines += ["In brackets: 95 % intervals over questions and seeds. What they can and cannot tell is said at the end."]
    if told_apart := resolution([board for board, _ in pairs]):
        lines[-1] += f" {told_apart}"
    if single := [board.title for board, _ in pairs if len(board.runs) == 1]:
        lines[-1] += f" **There is one run of {' and one of '.join(single)}: {ONE_RUN}**"
    lines += ["## The claims of the paper", CLAIMS]
    lines += [claim_table(claimed), "## Preconditions", precondition_table(checked)]
    if unknown := [board.title for board, _ in pairs if board.way not in {row.way for row in checked}]:
        lines.append(f"Nothing could be checked for {' and '.join(unknown)}.")
    return "\n\n".join(lines)


def _of_way(folder: Path, board: Board, validation: Board | None, relations: Sequence[Relation]) -> str:
    lines = [f"## {board.title[0].upper()}{board.title[1:]}", main_table(board)]
    lines += [f"Test questions, in percent; ± is half the width of the 95 % interval. Questions: {_counts(board)}."]
    if len(board.main()) > 1:
        name = save(figures.ranking(board), folder, f"ranking_{board.way}")
        lines += ["### Ranking", f"![ranking]({name})", ranking_table(board)]
    if table := ablation_table(board):
        lines += ["### Ablation of OptMerge", table]
    if validation and figures.curves_of(validation, board):
        name = save(figures.strength(validation, board), folder, f"strength_{board.way}")
        told = f"On validation questions, by which strengths are chosen.{_at_ends(board, validation)}"
        lines += ["### Strength", f"![strength]({name})", told]
    own = [each for each in relations if each.way == board.way]
    if own:
        name = save(task_vectors(board, own), folder, f"task_vectors_{board.way}")
        lines += ["### Task vectors of the experts", f"![task vectors]({name})", relation_table(own)]
    return "\n\n".join([*lines, "### Each run", run_table(board)])


def _at_ends(board: Board, validation: Board) -> str:
    """The methods for which the first or the last of the tried strengths was chosen, as better ones may lie beyond."""
    found = []
    for name, curve in figures.curves_of(validation, board).items():
        chosen = board.one("merge", name, "chosen")
        used = set(board.strengths(chosen)) if chosen else set()
        if ends := [f"{each:g}" for each in (curve[0].strength, curve[-1].strength) if each in used]:
            found.append(f"`{name}` ({', '.join(ends)})")
    if not found:
        return ""
    return f" At an end of what was tried, in one run at least: {', '.join(found)}; better strengths may lie beyond."


def _together(folder: Path, boards: Sequence[Board]) -> str:
    """The figures with a panel for each way of training."""
    lines = []
    if trained := [board for board in boards if board.of("expert") and board.one("base")]:
        name = save(gains(trained), folder, "gains")
        lines += ["## What the experts gain and lose", f"![gains and losses]({name})"]
    if timed := [board for board in boards if any(board.seconds(each) is not None for each in board.main())]:
        name = save(figures.cost(timed), folder, "cost")
        lines += ["## Accuracy and cost", f"![cost]({name})"]
    return "\n\n".join(lines)


def _made(made: Mapping[str, Any], about: About, pairs: Sequence[Pair], folder: Path) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    looks = "once" if about.looks == 1 else f"up to {about.looks} times, before with other settings"
    lines = [f"- `{about.command}`, {made['date']}; {versions}."]
    if about.seconds:
        lines.append(f"- CPU seconds: {', '.join(f'{name} {each:.0f}' for name, each in about.seconds.items())}.")
    lines.append(f"- A model was asked the test questions {looks}; strengths are chosen on validation questions.")
    for board, validation in pairs:
        runs = "; ".join(f"base {base}, seed {seed}" for base, seed in board.runs)
        tried = len({each.strength for each in validation.of("merge", setting="grid")}) if validation else 0
        told = f"; {tried} strengths were tried for each method" if tried else ""
        lines.append(f"- {board.way}: runs of {runs}{told}.")
    files = f"`{FILE}` has every mean with its interval"
    files += f", `{SCORES}` the score of every question" if (folder / SCORES).exists() else ""
    lines += [f"- {files}.", *(f"- {note}" for note in about.notes)]
    return "\n\n".join(["## How this was made", "\n".join(lines), "### What the intervals can tell", INTERVALS])


def _counts(board: Board) -> str:
    counts = [each.shape[2] for each in board.scores]
    if len(set(counts)) == 1:
        return f"{counts[0]} of each column"
    return ", ".join(f"{column} {count}" for column, count in zip(board.columns, counts, strict=True))


ONE_RUN = "its intervals are over questions alone, and experts of another seed may well give another result."
CLAIMS = (
    "The paper is OptMerge (arXiv 2505.19892v3); T2 to T5 are its tables: full fine-tunes of InternVL2.5-1B, LoRA "
    "experts of Qwen2-VL-7B, the ablation, and modalities. All figures are points. A claim holds, or does not, only if "
    "the 95 % interval excludes the contrary; `runs` counts those in which the difference is on the claim's side."
)
INTERVALS = (
    "Questions are resampled, the same for all models and runs; a mean over runs varies as Student's t does. So a "
    "difference is shown only if it is large beside the choice of questions and beside the spread over seeds. Each "
    "interval is right in 95 % of cases by itself; of many, some are wrong. Runs count as exchangeable although most "
    "share a base: were bases to differ more than seeds do, the intervals would be too narrow. They say nothing about "
    "other material, larger models or other settings of training. Where there is one run, they are about questions "
    "alone."
)
