"""The report of the benchmark in miniature, from results with known effects."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import program
from synthetic_minibench import CAPABILITIES, METHODS, ROWS, RUNS, capabilities, modalities, relations

from examples.common.commands import ROOT
from examples.minibench.evidence.arrange import arranged, ways_of
from examples.minibench.evidence.board import Board
from examples.minibench.evidence.check import AGREES, DIFFERS, MISSING, NEW, compared
from examples.minibench.evidence.claims import Claim, best_on_validation, claims
from examples.minibench.evidence.lines import lines
from examples.minibench.evidence.preconditions import preconditions
from examples.minibench.evidence.report import About, write_report
from examples.minibench.evidence.sentences import sentences, warning
from examples.minibench.evidence.verdicts import FAILS, HOLDS, UNDECIDED
from examples.minibench.results import Result

ABOUT = About("python -m examples.minibench --quick", seconds={"material": 61.0})
FEW = 60  # questions of each column
RESAMPLES = 800


def boards(results: Sequence[Result], way: str = "lora") -> tuple[Board, Board]:
    test, validation = (arranged(results, way, split, ROWS, None, RESAMPLES) for split in ("test", "validation"))
    assert test
    assert validation
    return test, validation


@pytest.fixture(scope="module")
def lora() -> list[Result]:
    return capabilities("lora", 300)


@pytest.fixture(scope="module")
def pair(lora: list[Result]) -> tuple[Board, Board]:
    return boards(lora)


@pytest.fixture(scope="module")
def found(pair: tuple[Board, Board]) -> dict[str, Claim]:
    return {each.statement: each for each in claims(*pair)}


def lowered(results: Sequence[Result], kind: str, name: str, value: float) -> list[Result]:
    """The same results, but that all scores of a model are one number."""
    return [
        replace(each, scores={column: [value] * len(given) for column, given in each.scores.items()})
        if (each.kind, each.name) == (kind, name)
        else each
        for each in results
    ]


def test_results_are_arranged_by_model_run_and_question(pair: tuple[Board, Board]) -> None:
    board, validation = pair
    assert (board.columns, board.runs) == (CAPABILITIES, RUNS)
    assert [each.name for each in board.main()] == list(ROWS.methods)
    assert {each.name for each in board.merges()} - {each.name for each in board.main()} == board.only_ablated
    assert len(validation.of("merge", "optmerge", "grid")) == 6
    base = board.models.index(board.of("base")[0])
    assert board.bootstrap.present.all()
    assert np.array_equal(board.scores[0][base, 0], board.scores[0][base, 1])  # two seeds on one base
    assert not np.array_equal(board.scores[0][base, 0], board.scores[0][base, 3])


def test_two_results_of_one_run_are_refused(lora: list[Result]) -> None:
    with pytest.raises(ValueError, match="two results of"):
        arranged([*lora, lora[-1]], "lora", "test")
    short = replace(lora[-1], scores={column: given[1:] for column, given in lora[-1].scores.items()})
    with pytest.raises(ValueError, match="other questions"):
        arranged([*lora[:-1], short], "lora", "test")


def test_preconditions_that_hold_are_no_reason_to_warn(pair: tuple[Board, Board]) -> None:
    rows = preconditions(pair[0])
    assert {row.verdict for row in rows} == {HOLDS}
    assert len(rows) == 2 + 2 * len(CAPABILITIES)
    assert warning(rows) is None


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        ("mixture", "mixture", 0.1, "mixture training is above the base"),
        ("base", "base", 0.05, "the base is above not looking"),
        ("expert", "ocr", 0.2, "the expert for ocr is above the base in its own column"),
        ("expert", "vqa", 0.9, "the expert for vqa is not clearly above the base in another column"),
    ],
)
def test_a_precondition_that_fails_is_told_loudly(
    lora: list[Result], kind: str, name: str, value: float, words: str
) -> None:
    rows = preconditions(boards(lowered(lora, kind, name, value))[0])
    assert words in " ".join(row.statement for row in rows if row.verdict == FAILS)
    told = warning(rows)
    assert told
    assert "PRECONDITIONS DO NOT ALL HOLD" in told
    assert words in told


def test_claims_that_are_true_of_the_results_hold(found: dict[str, Claim]) -> None:
    above = found["merging (optmerge) is above the best single expert"]
    assert (above.verdict, above.runs, above.paper[:5]) == (HOLDS, (4, 4), "+15.4")
    assert found["in OptMerge, a start from the mean is above one from the sum"].verdict == HOLDS
    assert found["in OptMerge, low rank is above full rank"].verdict == UNDECIDED  # the accuracies differ by 0.2
    assert found["WUDI is above all other methods of the paper but OptMerge"].verdict == UNDECIDED  # TSV is as good


def test_methods_that_the_paper_does_not_have_do_not_refute_it(lora: list[Result]) -> None:
    rows = {each.statement: each for each in claims(*boards(lowered(lora, "merge", "swudi", 0.99)))}
    assert rows["OptMerge is above all other methods of the paper but WUDI"].verdict == UNDECIDED


def test_a_part_that_changes_no_answer_is_not_above(lora: list[Result]) -> None:
    """So it is with the cut to low rank of LoRA experts, which have no more directions than it leaves."""
    same = {(each.base, each.seed, each.split, each.strength): each.scores for each in lora if each.name == "optmerge"}
    equal = [
        replace(each, scores=same[each.base, each.seed, each.split, each.strength])
        if each.name == "wudi_sgd_mean"
        else each
        for each in lora
    ]
    rows = claims(*boards(equal))
    (row,) = (each for each in rows if each.statement == "in OptMerge, low rank is above full rank")
    assert (row.here.low, row.here.high, row.verdict) == (0, 0, FAILS)
    told = sentences([boards(equal)], rows)
    assert any(
        "it is shown to be wrong that low rank is above full rank for LoRA experts (0.0, 0.0 to 0.0)" in t for t in told
    )


def test_a_claim_that_is_wrong_does_not_hold(lora: list[Result]) -> None:
    """The best expert is as far above every merge as nothing but an error could hide."""
    rows = {each.statement: each for each in claims(*boards(lowered(lora, "expert", "vqa", 0.95)))}
    assert rows["merging (optmerge) is above the best single expert"].verdict == FAILS


def test_the_recommended_method_is_chosen_on_validation_questions(lora: list[Result]) -> None:
    """A method that is perfect on test questions and nothing on validation ones is not recommended."""
    cheat = [
        replace(each, scores={c: [float(each.split == "test")] * len(given) for c, given in each.scores.items()})
        if each.name == "linear"
        else each
        for each in lora
    ]
    test, validation = boards(cheat)
    best = best_on_validation(test, validation)
    assert best
    assert best.name == "optmerge"
    assert "Above it on test questions: `linear`" in sentences([(test, validation)], [])[0]


def test_sentences_claim_no_more_than_the_intervals(
    lora: list[Result], pair: tuple[Board, Board], found: dict[str, Claim]
) -> None:
    told = sentences([pair], list(found.values()))
    assert "For LoRA experts start with `optmerge` at strength 0.7" in told[0]
    assert "above `task_arithmetic`" in told[0]
    assert "not told apart from training on the mixture" in told[0]
    equal = list(lora)
    for name in METHODS:
        equal = lowered(equal, "merge", name, 0.5)
    told = sentences([boards(equal)], [])
    assert "not told apart from `task_arithmetic` at its best strength (difference 0.0" in told[0]
    assert any("strengths chosen on validation questions are not told apart from the published ones" in t for t in told)


def test_all_of_it_is_written(tmp_path: Path) -> None:
    full = capabilities("full", FEW)
    others = [each for each in capabilities("lora", FEW) if each.way]
    results = [*full, *others, *modalities(FEW)]
    file = write_report(results, tmp_path, ABOUT, ROWS, relations(), None, RESAMPLES)
    text = file.read_text()
    assert ways_of(results) == ["full", "lora", "modality"]
    for line in text.splitlines():
        if line.startswith("!["):
            picture = tmp_path / line.split("(")[1].removesuffix(")")
            assert picture.read_bytes().startswith(b"\x89PNG")
    assert text.count("![") == 10
    for words in ("nan", "None", "inf ", "-0.0"):
        assert words not in text
    for words in (
        "base 1, seed 0",
        "61",
        "mergekit 0.1",
        ABOUT.command,
        "on two modalities",
        "dare_ties, published 0.3",
    ):
        assert words in text
    record = json.loads((tmp_path / "results.json").read_text())
    assert set(record["sets"]) == {"full", "lora", "modality"}
    (optmerge,) = (m for m in record["sets"]["lora"]["models"] if (m["name"], m["setting"]) == ("optmerge", "chosen"))
    value, low, high = optmerge["mean"]
    assert low < value < high
    assert np.mean([each[0] for each in optmerge["columns"].values()]) == pytest.approx(value, abs=1e-4)
    told = {line.split("`")[1]: line for line in lines(record)}
    assert set(told) == set(ROWS.methods)
    assert (
        f"; LoRA experts: {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f}) at its best strength, 0.7, rank "
        in (told["optmerge"])
    )
    scores = np.load(tmp_path / "scores.npz")
    assert scores["lora/ocr"].shape == (len(boards(results)[0].models), 4, FEW)
    assert (tmp_path / "scores.npz").stat().st_size < 300_000


def test_one_run_and_few_results_are_enough_for_a_report(tmp_path: Path) -> None:
    results = [each for each in capabilities("full", FEW, runs=((0, 0),)) if each.kind != "mixture"]
    few = [each for each in results if each.split == "test" and each.setting != "chosen"]
    text = write_report(few, tmp_path, ABOUT, resamples=RESAMPLES).read_text()
    assert "runs of base 0, seed 0" in text
    assert "mixture" not in text.split("## How this was made")[0].split("## Full fine-tunes")[1]
    with pytest.raises(ValueError, match="no results on test questions"):
        write_report([each for each in results if each.split == "validation"], tmp_path, ABOUT)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    """No preconditions, no seeds, no choice of strengths, and strengths at the end of those that were tried."""
    few = [each for each in modalities(FEW, RUNS[:1]) if each.name in ("image", "ties", "optmerge", "task_arithmetic")]

    def told(results: Sequence[Result]) -> str:
        return write_report(results, tmp_path, ABOUT, ROWS, resamples=RESAMPLES).read_text()

    text = told(few)
    assert "NO PRECONDITION COULD BE CHECKED" in text
    assert "There is one run of experts of different modalities: its intervals are over questions alone" in text
    assert "may lie beyond" not in text
    assert "No method is recommended for" not in text
    one = [each for each in few if each.setting != "grid" or each.strength == 0.5]
    assert "![strength]" not in told(one)
    assert "No method is recommended for experts of" in told([each for each in few if each.setting != "grid"])
    ends = [replace(each, strength=1.5) if each.setting == "chosen" and each.name == "ties" else each for each in few]
    assert "in one run at least: `ties` (1.5); better strengths may lie beyond." in told(ends)


def test_the_documents_have_the_lines_of_the_run_that_they_name() -> None:
    told = (
        (ROOT / "docs" / "which-method-when.md").read_text().split("## Evidence for each method")[1].split("\n## ")[0]
    )
    (folder,) = re.findall(r"\(\.\./(examples/minibench/results/[^)]*)/report\.md\)", told)
    written = [line for line in told.splitlines() if line.startswith("- `")]
    assert written == lines(json.loads((ROOT / folder / "results.json").read_text()))


def record(mean: Sequence[float], name: str = "ties") -> dict[str, Any]:
    model = {"kind": "merge", "name": name, "setting": "chosen", "mean": list(mean)}
    return {"sets": {"full": {"questions": {"vqa": 60}, "runs": [[0, 0]], "models": [model]}}}


@pytest.mark.parametrize(
    ("fresh", "committed", "verdict"),
    [
        ([0.5, 0.45, 0.55], [0.52, 0.47, 0.57], AGREES),
        ([0.5, 0.45, 0.55], [0.56, 0.51, 0.61], DIFFERS),
        ([0.5, 0.30, 0.70], [0.56, 0.54, 0.58], DIFFERS),  # within the one interval, not within the other
    ],
)
def test_merges_agree_within_their_intervals(fresh: list[float], committed: list[float], verdict: str) -> None:
    (row,) = compared(record(fresh), record(committed))
    assert row[-1] == verdict


@pytest.mark.slow
def test_the_check_ends_with_an_error_if_a_merge_differs(tmp_path: Path) -> None:
    def checked(fresh: dict[str, Any], committed: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        for name, content in (("fresh", fresh), ("committed", committed)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.json").write_text(json.dumps(content))
        command = [sys.executable, "-m", "examples.minibench.evidence.check"]
        folders = [str(tmp_path / name) for name in ("fresh", "committed")]
        return program([*command, *folders], cwd=ROOT)

    same = record([0.5, 0.45, 0.55])
    assert checked(same, same).returncode == 0
    other = checked(same, record([0.5, 0.45, 0.55], "tsv"))
    assert (other.returncode, MISSING in other.stdout, NEW in other.stdout) == (1, True, True)
    longer = record([0.5, 0.45, 0.55])
    longer["sets"]["full"]["questions"]["vqa"] = 100
    refused = checked(same, longer)
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    (tmp_path / "committed" / "results.json").unlink()
    command = [
        sys.executable,
        "-m",
        "examples.minibench.evidence.check",
        *(str(tmp_path / n) for n in ("fresh", "committed")),
    ]
    lacking = program(command, cwd=ROOT)
    (line,) = lacking.stderr.strip().splitlines()
    assert "committed has no results.json: nothing to compare with" in line
