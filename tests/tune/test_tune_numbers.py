"""`mergekit-mm tune`: means and standard errors, the rounds, and the configs of candidates."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import mergekit_mm.register  # noqa: F401  # where the tests run without the start-up hook
from mergekit_mm.errors import MergeError
from mergekit_mm.tune.candidates import Variant, candidates, parse_variant
from mergekit_mm.tune.halving import new_answers, rounds
from mergekit_mm.tune.scores import Estimate, Values, difference, estimate

NUMBERS = st.floats(-100, 100, allow_nan=False)
SETS = st.lists(st.lists(NUMBERS, min_size=2, max_size=12), min_size=1, max_size=4)


def alike(sets: list[list[float]], weight: float = 1.0) -> Values:
    """Values of equal weights."""
    return {str(at): {n: (value, weight) for n, value in enumerate(own)} for at, own in enumerate(sets)}


# ------------------------------------------------------------------------------------------------------- scores


@given(SETS, st.floats(0.1, 10))
def test_with_equal_weights_it_is_the_standard_error_of_a_mean(sets: list[list[float]], weight: float) -> None:
    found = estimate(alike(sets, weight))
    assert found.value == pytest.approx(statistics.fmean(map(statistics.fmean, sets)), abs=1e-9)
    errors = [statistics.stdev(own) / math.sqrt(len(own)) for own in sets]
    assert found.stderr == pytest.approx(math.hypot(*errors) / len(sets), abs=1e-9)


def test_a_mean_over_tokens_and_its_error_are_those_of_many_draws() -> None:
    """Samples of other lengths: the mean per token over all, and how much it varies between draws."""
    draw = random.Random(0)

    def sample() -> dict[int, tuple[float, float] | None]:
        lengths = [draw.choice([1.0, 2.0, 8.0]) for _ in range(200)]
        return {at: (draw.gauss(1 + 0.1 * n, 1.0 / math.sqrt(n)), n) for at, n in enumerate(lengths)}

    drawn = [sample() for _ in range(400)]
    means = [sum(v * w for v, w in own.values()) / sum(w for _, w in own.values()) for own in drawn]
    found = [estimate({"a": own}) for own in drawn]
    assert [each.value for each in found] == pytest.approx(means)
    assert statistics.fmean(each.stderr for each in found) == pytest.approx(statistics.stdev(means), rel=0.15)


@given(SETS, SETS)
def test_a_difference_is_that_of_the_pairs(sets: list[list[float]], others: list[list[float]]) -> None:
    kept = [(own[: len(other)], other[: len(own)]) for own, other in zip(sets, others, strict=False)]
    one, two = alike([a for a, _ in kept]), alike([b for _, b in kept])
    found = difference(one, two)
    assert found.value == pytest.approx(estimate(one).value - estimate(two).value, abs=1e-9)
    pairs = [[a - b for a, b in zip(*each, strict=True)] for each in kept]
    assert found == estimate(alike(pairs))
    assert difference(one, one) == Estimate(0.0, 0.0)


def test_a_question_that_one_was_not_asked_is_no_part_of_a_difference() -> None:
    one: Values = {"a": {0: (1.0, 1.0), 1: (0.0, 1.0), 2: (5.0, 1.0), 3: None}}
    two: Values = {"a": {0: (0.0, 1.0), 1: (1.0, 1.0), 3: (7.0, 1.0)}}
    assert difference(one, two).value == 0.0


def test_what_is_not_known_is_not_apart() -> None:
    assert estimate(alike([[1.0]])) == Estimate(1.0, None)
    assert not Estimate(1.0, None).is_apart
    assert not Estimate(1.0, 0.6).is_apart
    assert Estimate(1.0, 0.5).is_apart
    assert Estimate(-1.0, 0.5).is_apart
    assert not Estimate(0.0, 0.0).is_apart


# ------------------------------------------------------------------------------------------------------- rounds


@given(st.integers(1, 80), st.one_of(st.none(), st.integers(1, 400)), st.lists(st.integers(1, 3000), min_size=1))
def test_the_better_half_is_asked_twice_as_much(count: int, limit: int | None, sizes: list[int]) -> None:
    named = {str(at): size for at, size in enumerate(sizes)}
    race = rounds(count, limit, max(sizes))
    assert race[0].candidates == count
    assert race[0].questions == min(limit or max(sizes), max(sizes))
    for one, two in pairwise(race):
        assert two.candidates == math.ceil(one.candidates / 2)
        assert two.questions == min(2 * one.questions, max(sizes))
    assert race[-1].candidates <= 2 or race[-1].questions == max(sizes)
    asked = {(who, name): 0 for who in range(count) for name in named}  # of the best `candidates`, in each round
    total = 0
    for each in race:
        for (who, name), before in asked.items():
            if who < each.candidates:
                asked[who, name] = min(named[name], each.questions)
                total += asked[who, name] - before
    assert new_answers(race, named) == total


# --------------------------------------------------------------------------------------------------- candidates

BASE = {"merge_method": "optmerge", "base_model": "b", "models": [{"model": "x"}, {"model": "y"}]}


def trees(config: dict[str, object], variant: str, *strengths: float) -> list[dict[str, object]]:
    return [
        yaml.safe_load(each.source) for each in candidates(yaml.safe_dump(config), parse_variant(variant), strengths)
    ]


def test_a_strength_is_the_parameter_of_its_method() -> None:
    config = {**BASE, "parameters": {"scaling": 7.0, "lambda": 9.0, "preset": "full"}}
    first, second = trees(config, "wudi:solver=exact", 0.3, 1.0)
    assert first == {
        **config,
        "merge_method": "wudi",
        "parameters": {"scaling": 0.3, "lambda": 9.0, "preset": "full", "solver": "exact"},
    }
    assert second["parameters"]["scaling"] == 1.0
    (ties,) = trees(config, "ties", 0.5)
    assert ties["parameters"] == {
        "scaling": 7.0, "lambda": 0.5, "preset": "full", "weight": 1.0, "density": 0.2
    }  # fmt: skip
    (plain,) = trees({**BASE, "models": [{"model": "x", "parameters": {"weight": 2.0}}]}, "task_arithmetic", 0.5)
    assert plain["parameters"] == {"lambda": 0.5}


def test_a_method_without_a_strength_is_one_candidate() -> None:
    (found,) = candidates(yaml.safe_dump(BASE), Variant("linear"), [0.1, 0.5])
    assert found.strength is None
    assert found.label == "linear"


def test_gradients_and_filters_keep_their_shape() -> None:
    setting = [{"filter": "mlp", "value": [0.5, 1.0]}, {"value": 2.0}]
    (found,) = trees({**BASE, "parameters": {"scaling": setting}}, "tsv", 0.5)
    assert found["parameters"]["scaling"] == [{"filter": "mlp", "value": [0.25, 0.5]}, {"value": 1.0}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optmrege", "Unknown merge method 'optmrege' in --methods. Did you mean 'optmerge'?"),
        ("optmerge:full", "'full' of 'optmerge:full' is no PARAMETER=VALUE"),
    ],
)
def test_a_method_that_means_nothing_is_refused(text: str, told: str) -> None:
    with pytest.raises(MergeError) as error:
        parse_variant(text)
    assert told in str(error.value)


def test_a_strength_below_the_top_level_is_refused() -> None:
    config = {"merge_method": "tsv", "base_model": "b", "modules": {"text": {"parameters": {"scaling": 1.0}}}}
    with pytest.raises(MergeError, match="has `scaling` in a slice or a module"):
        trees(config, "tsv", 0.5)
    assert len(trees(config, "task_arithmetic", 0.5)) == 1
