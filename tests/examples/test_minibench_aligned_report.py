"""What the report says of merges that learned from unlabelled samples, from results with known effects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_minibench import ALIGNED_ROWS, CAPABILITIES, LOST, ROWS, RUNS, aligned, capabilities

from examples.minibench.evidence.aligned import draws_of, kept_and_left, over_draws, rows_of, start_of, usual
from examples.minibench.evidence.aligned_claims import aligned_claims
from examples.minibench.evidence.aligned_section import aligned_section, aligned_sentences
from examples.minibench.evidence.arrange import arranged
from examples.minibench.evidence.board import Board
from examples.minibench.evidence.claims import Claim
from examples.minibench.evidence.report import About, write_report
from examples.minibench.evidence.verdicts import FAILS, HOLDS, UNDECIDED
from examples.minibench.results import Result

RESAMPLES = 600


@pytest.fixture(scope="module")
def results() -> list[Result]:
    without_data = capabilities("lora", 300)
    return [*without_data, *aligned(without_data)]


def board_of(results: list[Result]) -> Board:
    board = arranged(over_draws(results), "lora", "test", ROWS, None, RESAMPLES)
    assert board
    return board


@pytest.fixture(scope="module")
def board(results: list[Result]) -> Board:
    return board_of(results)


@pytest.fixture(scope="module")
def found(board: Board, results: list[Result]) -> dict[str, Claim]:
    return {each.statement: each for each in aligned_claims(board, draws_of(board, results))}


def test_a_model_is_the_mean_of_its_draws(results: list[Result], board: Board) -> None:
    drawn = [r for r in results if (r.name, r.setting, r.base, r.seed) == ("adapter", "5", 0, 0)]
    assert len(drawn) == 3
    at, run = board.models.index(usual(board, "adapter")[5]), board.runs.index((0, 0))
    expected = np.mean([each.scores["ocr"] for each in drawn], axis=0)
    assert np.allclose(board.scores[CAPABILITIES.index("ocr")][at, run], expected)
    assert rows_of(board) == list(ALIGNED_ROWS)
    assert list(usual(board, "adapter")) == [5, 16, 64]
    assert [each.name for each in board.main()] == list(ROWS.methods)  # aligned merges are none of them


def test_what_is_true_of_the_results_holds(found: dict[str, Claim]) -> None:
    for statement in (
        "`adapter` with 64 samples is above every method without data",
        "`adapter` with 64 samples has an interval above those of all methods without data",
        "`adapter` with 64 samples is above Expert Merging with as many",
        "`adapter` with 64 samples is above the same adapter on the base instead of the merge with as many",
        "`adapter` with 16 samples is above its start",
        "`adapter` with 16 samples is clearly below its start in no draw",
    ):
        assert found[statement].verdict == HOLDS, statement
    assert found["`coefficients` with 5 samples is above its start"].verdict == UNDECIDED  # the accuracies are equal
    assert "`coefficients` with 64 samples is above the same adapter" not in " ".join(found)


def test_what_is_wrong_does_not_hold(results: list[Result]) -> None:
    """One draw of few samples that forgets everything, and many samples that are of no use."""
    worse = [
        replace(each, scores={column: [0.0] * len(given) for column, given in each.scores.items()})
        if (each.name, each.setting, each.base, each.seed, each.facts.get("draw")) == ("adapter", "5", 0, 1, 2)
        or (each.name, each.setting) == ("adapter", "64")
        else each
        for each in results
    ]
    board = board_of(worse)
    rows = {each.statement: each for each in aligned_claims(board, draws_of(board, worse))}
    none_below = rows["`adapter` with 5 samples is clearly below its start in no draw"]
    assert (none_below.verdict, none_below.runs) == (FAILS, (11, 12))
    assert rows["`adapter` with 64 samples is above every method without data"].verdict == FAILS
    assert rows["`adapter` with 64 samples has an interval above those of all methods without data"].verdict == FAILS
    assert rows["`adapter` with 64 samples is above its start"].verdict == FAILS
    assert "`adapter` with 64 samples is at most 1 point below its start" not in rows


def test_intervals_of_draws_allow_for_their_number(board: Board, results: list[Result]) -> None:
    found = draws_of(board, results)
    few, many = (found[usual(board, "adapter")[samples]] for samples in (64, 5))
    assert (len(few.gaps), len(many.gaps)) == (len(RUNS), 3 * len(RUNS))
    assert many.changed == 2 * len(RUNS)  # the first draw of each run kept the start
    assert np.mean([gap.half for gap in many.gaps]) > 1.05 * np.mean([gap.half for gap in few.gaps])
    assert many.worst == min(many.gaps, key=lambda gap: gap.value)
    assert (many.seconds, many.tokens) == (12, 2.5)
    assert not draws_of(board, [each for each in results if each.name != "start"])


def test_what_is_forgotten_is_found(board: Board) -> None:
    lost = dict(kept_and_left(board, "adapter"))
    assert set(lost) == set(CAPABILITIES)
    for each in lost.values():
        assert each["with_samples"].value - each["left"].value == pytest.approx(LOST, abs=0.06)
        assert each["others"].low > 0
    start = start_of(board)
    assert start
    assert board.strengths(start)


def test_sentences_claim_no_more_than_the_intervals(board: Board, results: list[Result]) -> None:
    (told,) = aligned_sentences([(board, draws_of(board, results))])
    adapter, coefficients = told.split(" For LoRA experts, `coefficients`")
    assert "For LoRA experts, `adapter` with 64 unlabelled samples for each expert is" in adapter
    assert "points (" in adapter.split("above its start")[0]
    assert "above the best method without data on test questions" in adapter
    assert "clearly below the start are 0 of 12 draws of 5 samples and 0 of 8 draws of 16 samples;" in adapter
    assert "without samples of one capability, that one changes by" in adapter
    assert "not told apart from" in coefficients or "above" in coefficients


def test_the_report_has_the_section_and_the_record_the_draws(tmp_path: Path, results: list[Result]) -> None:
    few = [replace(each, scores={c: given[:60] for c, given in each.scores.items()}) for each in results]
    text = write_report(few, tmp_path, About("command"), ROWS, resamples=RESAMPLES).read_text()
    section = text.split("## Aligned by unlabelled samples")[1].split("\n## ")[0]
    assert "![accuracy by samples](aligned.png)" in section
    assert (tmp_path / "aligned.png").read_bytes().startswith(b"\x89PNG")
    for words in ("start: optmerge 0.7", "| adapter, 64 ", "of 12", "elsewhere above usual", "12 s, 160 tokens"):
        assert words in section
    assert "no figure" not in section
    for words in ("nan", "None", "-0.0"):
        assert words not in section
    assert "adapter" not in text.split("## LoRA experts")[1].split("## Aligned")[0]
    record = json.loads((tmp_path / "results.json").read_text())
    draws = [each for each in record["draws"] if (each["name"], each["setting"]) == ("adapter", "5")]
    assert len(draws) == 12
    assert set(draws[0]["columns"]) == set(CAPABILITIES)
    assert "`adapter` with 64 samples is above its start" in {each["statement"] for each in record["claims"]}


def test_without_aligned_merges_there_is_no_section(tmp_path: Path, results: list[Result]) -> None:
    plain = [each for each in results if each.kind != "aligned"]
    assert aligned_section(tmp_path, [(board_of(plain), {})], []) is None
    assert not list(tmp_path.iterdir())
