"""The intervals of the benchmark in miniature: exact where a closed form is known, and right as often as they say."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from examples.minibench.evidence.statistics import Bootstrap, Interval


def test_with_one_run_an_interval_is_that_of_a_proportion() -> None:
    rng = np.random.default_rng(0)
    right = (rng.uniform(size=400) < 0.3).astype(float)
    found = Bootstrap([right[None, None]]).mean(0)
    error = math.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert found.value == pytest.approx(right.mean())
    assert found.low == pytest.approx(right.mean() - 1.96 * error, abs=0.003)
    assert found.high == pytest.approx(right.mean() + 1.96 * error, abs=0.003)


@pytest.mark.parametrize("levels", [(0.2, 0.4), (0.30, 0.36, 0.31), (0.5, 0.52, 0.47, 0.55)])
def test_without_noise_of_questions_an_interval_is_students(levels: tuple[float, ...]) -> None:
    scores = np.repeat(np.array(levels)[None, :, None], 50, axis=2)
    found = Bootstrap([scores], resamples=100_000).contrast({0: 1.0})
    low, high = stats.t.interval(0.95, len(levels) - 1, np.mean(levels), stats.sem(levels))
    assert found.half == pytest.approx((high - low) / 2, rel=0.06)
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.1, abs=0.02)


def test_the_mean_is_the_plain_mean_of_columns_of_unequal_size() -> None:
    columns = [np.full((1, 1, 10), 1.0), np.full((1, 1, 1000), 0.0)]
    assert Bootstrap(columns, resamples=100).mean(0).value == 0.5


def test_what_two_models_share_on_a_question_cancels_in_their_difference() -> None:
    rng = np.random.default_rng(0)
    hard = (rng.uniform(size=500) < 0.5).astype(float)
    better = np.where(rng.uniform(size=500) < 0.05, 1.0, hard)
    found = Bootstrap([np.stack([better, hard])[:, None]])
    assert found.contrast({0: 1.0, 1: -1.0}).half < found.mean(0).half / 2


def test_questions_about_one_picture_are_no_independent_ones() -> None:
    rng = np.random.default_rng(0)
    pictures = (rng.uniform(size=100) < 0.5).astype(float)
    scores = np.repeat(pictures, 4)[None, None]
    alone = Bootstrap([scores]).mean(0)
    grouped = Bootstrap([scores], [np.repeat(np.arange(100), 4).tolist()]).mean(0)
    assert grouped.half == pytest.approx(2 * alone.half, rel=0.1)


def test_pictures_that_two_columns_ask_about_are_drawn_for_both() -> None:
    """Two columns of the same answers about the same pictures tell no more than one of them."""
    scores = (np.random.default_rng(0).uniform(size=200) < 0.5).astype(float)[None, None]
    pictures = list(range(200))
    alone = Bootstrap([scores], [pictures]).mean(0)
    shared = Bootstrap([scores, scores], [pictures, pictures]).mean(0)
    others = Bootstrap([scores, scores], [pictures, [200 + each for each in pictures]]).mean(0)
    assert shared.half == pytest.approx(alone.half, rel=0.05)
    assert others.half == pytest.approx(alone.half / np.sqrt(2), rel=0.05)


def test_models_that_answer_alike_differ_by_nothing() -> None:
    """Whatever the rounding of resamples is: a constant has no width, and a mean of differences of nothing no sign."""
    found = Bootstrap([np.full((4, 3, 60), value) for value in (0.1, 0.3, 0.7)], resamples=400)
    mean = found.mean(0)
    assert (mean.low, mean.high) == (round(mean.value, 6), round(mean.value, 6))
    assert found.contrast({0: 0.7, 1: -0.7, 2: 0.3, 3: -0.3}).sign == 0
    assert [(each.low, each.high) for each in found.ranks(range(4))] == [(1, 4)] * 4


def test_a_model_of_some_runs_is_compared_on_these() -> None:
    scores = np.zeros((2, 3, 20))
    scores[0] = np.array([0.2, 0.5, 0.8])[:, None]
    scores[1, 0], scores[1, 1:] = 0.1, np.nan
    found = Bootstrap([scores], resamples=200)
    assert found.contrast({0: 1.0, 1: -1.0}).value == pytest.approx(0.1)
    assert found.by_run({0: 1.0}).tolist() == pytest.approx([0.2, 0.5, 0.8])
    scores[1, 0] = np.nan
    with pytest.raises(ValueError, match="no run in common"):
        Bootstrap([scores], resamples=200).contrast({0: 1.0, 1: -1.0})


@pytest.mark.parametrize("runs", [1, 4])
def test_an_interval_has_the_truth_at_least_as_often_as_it_says(runs: int) -> None:
    """The truth is a difference of 3 points; runs have luck of their own, questions a difficulty."""
    rng = np.random.default_rng(runs)
    hits, ranks, trials = 0, 0, 300
    luck = 0.02 if runs > 1 else 0.0
    for _ in range(trials):
        difficulty = rng.uniform(size=(1, 1, 150))
        levels = np.array([0.53, 0.50, 0.50])[:, None, None] + luck * rng.standard_normal((3, runs, 1))
        noise = rng.uniform(size=(3, runs, 150))
        drawn = np.where(rng.uniform(size=(3, runs, 150)) < 0.5, noise, difficulty)
        found = Bootstrap([(drawn < levels).astype(float)], resamples=400, seed=int(rng.integers(1 << 30)))
        gap = found.contrast({0: 1.0, 1: -1.0})
        hits += gap.low <= 0.03 <= gap.high
        ranks += found.ranks([0, 1, 2])[0].low == 1
    assert hits / trials >= 0.93
    assert ranks / trials >= 0.95


def test_above_all_asks_for_each_difference() -> None:
    """Against many equals the best by chance is not above the rest; far above them it is, and far below it is not."""
    rng = np.random.default_rng(0)
    equal = (rng.uniform(size=(12, 1, 300)) < 0.5).astype(float)
    best = int(np.argmax(equal.mean(axis=(1, 2))))
    found = Bootstrap([equal]).above_all(best, [each for each in range(12) if each != best])
    assert found.sign == 0
    equal[best] = 1.0
    assert Bootstrap([equal]).above_all(best, [each for each in range(12) if each != best]).sign == 1
    assert Bootstrap([equal]).above_all((best + 1) % 12, [best]).sign == -1


def test_above_all_is_about_the_runs_that_all_models_are_of() -> None:
    """Of two runs, one of the others has the first only, where the model is far above both."""
    scores = np.zeros((3, 2, 50))
    scores[0, 0], scores[0, 1], scores[1, 1] = 0.9, 0.1, 0.8
    scores[2, 1] = np.nan
    found = Bootstrap([scores], resamples=200).above_all(0, [1, 2])
    assert (found.low, found.value, found.high) == pytest.approx((0.9, 0.9, 0.9), abs=1e-6)


def test_one_method_has_the_first_rank() -> None:
    (rank,) = Bootstrap([np.zeros((1, 1, 5))], resamples=50).ranks([0])
    assert (rank.value, rank.low, rank.high) == (1, 1, 1)


def test_intervals_that_hold_together_do_so_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits, alone, trials, pairs = 0, 0, 200, [(0, 4), (1, 4), (2, 4), (3, 4)]
    for _ in range(trials):
        scores = (rng.uniform(size=(5, 1, 150)) < 0.4).astype(float)
        found = Bootstrap([scores], resamples=300)
        hits += all(each.low <= 0 <= each.high for each in found.together(pairs))
        alone += all(each.low <= 0 <= each.high for each in (found.contrast({a: 1.0, b: -1.0}) for a, b in pairs))
    assert hits / trials >= 0.91
    assert hits > alone


def test_ranks_of_equals_are_open_and_of_others_are_known() -> None:
    rng = np.random.default_rng(0)
    levels = np.array([0.9, 0.5, 0.5, 0.1])
    scores = (rng.uniform(size=(4, 1, 600)) < levels[:, None, None]).astype(float)
    first, second, third, last = Bootstrap([scores]).ranks([0, 1, 2, 3])
    assert (first, last) == (Interval(1, 1, 1), Interval(4, 4, 4))
    assert [(each.low, each.high) for each in (second, third)] == [(2, 3), (2, 3)]


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = [np.random.default_rng(0).uniform(size=(3, 2, 50))]
    made = [Bootstrap(scores, resamples=300, seed=seed).contrast({0: 1.0, 2: -1.0}) for seed in (5, 5, 6)]
    assert made[0] == made[1] != made[2]


def test_it_is_fast_enough_for_a_report() -> None:
    scores = [np.random.default_rng(0).uniform(size=(20, 4, 300)) for _ in range(5)]
    started = time.process_time()
    found = Bootstrap(scores)
    found.ranks(range(20))
    assert time.process_time() - started < 10
