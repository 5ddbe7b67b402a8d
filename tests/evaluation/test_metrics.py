"""Metrics of the benchmark: cases that follow from the published rules, and properties."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_mm.evaluation.tasks import boxes, metrics
from mergekit_mm.evaluation.tasks.mathematics import mathvista_strict
from mergekit_mm.evaluation.tasks.options import read_option, strict_option
from mergekit_mm.evaluation.tasks.quantities import plain, quantities
from mergekit_mm.evaluation.tasks.scoring import CategoryScore, mean_of_categories, mean_of_categories_stderr
from mergekit_mm.evaluation.tasks.short_answers import normalise
from mergekit_mm.evaluation.tasks.statements import stated_answer

SIZE = {"image_width": 200, "image_height": 100}
OPTIONS = ["5 cm", "7 cm", "red", "dark red"]
# Pieces that the rules look for, so that random replies reach every branch.
PIECES = ["the answer is", "Answer:", "\\boxed{", "}", "{", "(B)", " A ", "Z", "[1, 2]", "(1,2),(3,4)", "[9e9,1,2,3]"]
PIECES += ["1,000", "-.5", "2²", "9" * 400, "1e999", "nan", "inf", "%", "\\frac{1}{0}", "1/0", "\u2212", "٣", "five"]
PIECES += ["$", "\n", "[0.1, 0.2, 0.3, 0.4]", "<|box_start|>", "['", "__import__('os')", "\x00", "\ud800", "'s", "dont"]
replies = st.one_of(st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join))

CALLS: list[Callable[[Any], float]] = [
    lambda reply: metrics.vqa_soft(reply, ["red"] * 6 + ["blue"] * 4),
    lambda reply: metrics.chartqa_relaxed(reply, "20"),
    lambda reply: metrics.exact_match_nopunct(reply, "red"),
    lambda reply: metrics.music_avqa_score(reply, "two"),
    lambda reply: metrics.avqa_score(reply, "B"),
    lambda reply: metrics.avqa_score(reply, "B", choices=OPTIONS),
    lambda reply: metrics.box_iou_score(reply, [0, 0, 9, 9], **SIZE),
    lambda reply: metrics.box_iou_score(reply, [0, 0, 9, 9], **SIZE, box_unit="pixel"),
    lambda reply: boxes.box_iou(reply, [0, 0, 9, 9], **SIZE),
    lambda reply: metrics.mathvista_score(reply, "7 cm", choices=OPTIONS, question_type="multi_choice"),
    lambda reply: metrics.mathvista_score(reply, "7", answer_type="integer"),
    lambda reply: metrics.mathvista_score(reply, "7.5", answer_type="float", precision=1.0),
    lambda reply: metrics.mathvista_score(reply, "[1, 2]", answer_type="list"),
    lambda reply: metrics.mathvista_score(reply, "red", answer_type="text"),
    lambda reply: mathvista_strict(reply, "7", answer_type="integer"),
    lambda reply: mathvista_strict(reply, "red", choices=OPTIONS, question_type="multi_choice"),
    lambda reply: metrics.mathvision_score(reply, "B", choices=OPTIONS),
    lambda reply: metrics.mathvision_score(reply, "3/4"),
]


@pytest.mark.slow
@settings(deadline=None)  # the first expression waits for math-verify's import
@given(replies)
def test_any_reply_scores_between_zero_and_one(reply: str) -> None:
    for call in CALLS:
        score = call(reply)
        assert type(score) is float
        assert 0 <= score <= 1


@pytest.mark.parametrize("reply", [None, "", 7, float("nan"), ["red"]])
def test_what_is_no_text_scores_nothing(reply: Any) -> None:
    assert [call(reply) for call in CALLS] == [0.0] * len(CALLS)


# ---------------------------------------------------------------------------------------------- short answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000", "1000"),
        ("1,000 a-b", "1000 ab"),  # a thousands separator anywhere deletes every mark
        ("coca-cola", "coca cola"),
        ("coca-cola -x", "cocacola x"),
        ("coca-cola-\tx", "cocacola x"),
        ("coca-cola- ", "coca cola"),
        ("coca-cola;-x", "coca cola x"),  # beside a blank as given, not one that another mark has become
        ("3.5", "3.5"),
        ("2.", "2"),
        ("." * 33, "."),
        ("The  Cat", "cat"),
        ("ten\tnone\n", "10 0"),
        ("dont", "don't"),
        ("shouldntve", "shouldntve"),  # two apostrophes are lost
        ("shouldn'tve", "shouldn't've"),
        ("somebody'd", "somebodyd"),
        ("lets shes", "lets shes"),
        ("Im", "im"),
        ("It's?", "it's"),
        ("acoustic_guitar", "acoustic guitar"),
    ],
)
def test_the_normaliser_follows_the_official_script(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.lists(st.sampled_from(["red", "the", "dont", "3.5", "seven", "it's", "cafe"]), max_size=5).map(" ".join))
def test_the_normaliser_leaves_its_own_results_alone(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.integers(0, 12), st.integers(0, 12), st.randoms())
def test_soft_accuracy_equals_its_closed_form_in_any_order(right: int, wrong: int, chance: random.Random) -> None:
    references = ["two"] * right + ["dog"] * wrong
    chance.shuffle(references)
    n = right + wrong
    expected = (right * min(1, (right - 1) / 3) + wrong * min(1, right / 3)) / n if n else 0
    assert metrics.vqa_soft("2.", references) == pytest.approx(max(expected, 0), abs=1e-12)


@pytest.mark.parametrize(("equal", "expected"), list(enumerate([0.0, 0.3, 0.6, 0.9, 1.0, 1.0])))
def test_soft_accuracy_with_ten_references(equal: int, expected: float) -> None:
    assert metrics.vqa_soft("Yes!", ["yes"] * equal + ["no"] * (10 - equal)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("20", "20", 1),
        (" 21 ", "20", 1),
        ("21.05", "20", 0),  # 5 % of the prediction, as the paper's copy has it, would let this pass
        ("19.02", "20", 1),
        ("18.98", "20", 0),
        ("25%", "0.25", 1),
        ("25", "25%", 0),
        ("1,000", "1000", 0),
        ("$20", "20", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # a reference of 0 is compared as text
        ("-20", "20", 0),
        ("YES", "yes", 1),
        ("2002", "[2001, 2002]", 1),
        ("b", "['a', 'b']", 1),
        ("[x", "[x", 1),
        ("nan", "NaN", 1),
        ("nan", "20", 0),
        ("inf", "20", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, expected: float) -> None:
    assert metrics.chartqa_relaxed(prediction, reference) == expected


@given(st.integers(1, 10**6), st.integers(-2000, 2000).filter(lambda at: abs(at) != 500), st.integers(0, 4))
def test_relaxed_accuracy_is_scale_free(target: int, tenths_of_per_mille: int, scale: int) -> None:
    prediction = target * (1 + tenths_of_per_mille / 1e4) * 10**scale
    assert metrics.chartqa_relaxed(repr(prediction), str(target * 10**scale)) == (abs(tenths_of_per_mille) < 500)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Yes.", "yes", 1),
        ("C++ Primer", "C Primer", 1),
        ("  two\n words ", "two words", 1),
        ("a_b", "ab", 0),
        ("don’t", "dont", 1),
        ("two-words", "two words", 0),
        ("b", ["a", "b"], 1),
    ],
)
def test_exact_match_without_punctuation(prediction: str, reference: Any, expected: float) -> None:
    assert metrics.exact_match_nopunct(prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("acoustic guitar", "acoustic_guitar", 1),
        ("2", "two", 1),
        ("none", "zero", 1),
        ("left,right?up", "leftrightup", 1),
        ("The CELLO'S", "cello 's", 1),
        ("Yes.", "yes", 1),
        ("no", "yes", 0),
    ],
)
def test_music_avqa(prediction: str, reference: str, expected: float) -> None:
    assert metrics.music_avqa_score(prediction, reference) == expected


@given(st.text())
def test_a_reference_answers_itself(text: str) -> None:
    assert metrics.vqa_soft(text, [text] * 10) == 1
    assert metrics.vqa_soft(text, text) == 1
    assert metrics.exact_match_nopunct(text, text) == 1
    assert metrics.music_avqa_score(text, text) == 1
    assert text.startswith("[") or metrics.chartqa_relaxed(text, text) == 1


# ---------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", "B"),
        ("(b).", "B"),
        ("B) 7", "B"),
        ("**C**", "C"),
        ("The answer is B", "B"),
        ("The correct option is: **C**, as shown", "C"),
        ("\\boxed{D}", "D"),
        ("\\boxed{\\text{D}}", "D"),
        ("A and B are wrong. The answer is C because", "C"),
        ("I choose B because A dog is there", "B"),
        ("It is A or B", None),
        ("答案是B", "B"),
        ("A dark red one", "D"),
        ("dark red", "D"),
        ("I think 5 cm", "A"),
        ("7cm.", "B"),
        ("15 cm", None),
        ("E", None),
        ("", None),
        ("none", None),
    ],
)
def test_the_option_that_a_reply_names(reply: str, expected: str | None) -> None:
    assert read_option(reply, OPTIONS) == expected


def test_an_option_s_text_is_compared_without_its_signs() -> None:
    assert read_option("145", ["35°", "145°"]) == "B"
    assert read_option("1.5", ["1", "1.5"]) == "B"


@pytest.mark.parametrize(("reply", "expected"), [("B.", "B"), ("A or B", None), ("5 CM", "A"), ("b", None)])
def test_the_peers_strict_rule(reply: str, expected: str | None) -> None:
    assert strict_option(reply, OPTIONS) == expected


@given(st.sampled_from("ABCD"))
def test_avqa_letters(letter: str) -> None:
    assert metrics.avqa_score(letter, letter) == 1
    assert metrics.avqa_score(f"({letter})", letter, choices=OPTIONS) == 1
    assert metrics.avqa_score(OPTIONS["ABCD".index(letter)], letter, choices=OPTIONS) == 1
    assert metrics.avqa_score(f"{letter}. it is", letter) == 1
    # the rule of the peers' script, where the options are not known
    assert metrics.avqa_score(f" {letter}", letter) == metrics.avqa_score(letter.lower(), letter) == 0


def test_options_that_are_letters() -> None:
    """MATH-Vision's references are letters, MathVista's are texts."""
    assert metrics.mathvision_score("A", "A", choices=["B", "A"]) == 1
    assert metrics.mathvista_score("A", "A", choices=["B", "A"]) == 0


def test_a_reference_that_is_no_option_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither one of the options"):
        metrics.avqa_score("A", "E", choices=OPTIONS)


# ---------------------------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1", "1"),
        ("The answer: 3. So the answer is 4", "4"),
        ("Answer is:", "Answer is:"),
        ("**Answer:** 5", "5"),
        ("just 5", "just 5"),
    ],
)
def test_the_part_that_states_the_answer(reply: str, expected: str) -> None:
    assert stated_answer(reply) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234 m", 1234),
        ("1,23", 23),
        ("−3", -3),
        ("3-5", 5),
        ("5 cm²", 5),
        ("5 cm2", 5),
        ("0.5 m^2", 0.5),
        ("5\\text{ cm}^{2}", 5),
        ("2^3", 3),
        ("1{,}234 or 1\\,234", 1234),
        (".5", 0.5),
        ("12.", 12),
        ("about Seven", 7),
        ("none", None),
    ],
)
def test_the_last_number(text: str, expected: float | None) -> None:
    values = [each.value for each in quantities(plain(text))]
    assert (values[-1] if values else None) == expected


@pytest.mark.parametrize(
    ("reply", "reference", "fields", "expected"),
    [
        ("The answer is 7.", "7", {"answer_type": "integer"}, 1),
        ("7.0", "7", {"answer_type": "integer"}, 1),
        ("\\boxed{7}, not 8", "7", {"answer_type": "integer"}, 1),
        ("7.04", "7", {"answer_type": "integer", "precision": 1.0}, 0),  # which is for decimal numbers
        ("0", "0", {"answer_type": "integer"}, 1),
        ("3.14159", "3.14", {"answer_type": "float", "precision": 2.0}, 1),
        ("3.1", "3.14", {"answer_type": "float", "precision": 2.0}, 0),
        ("It is [1, 2.0]", "[1, 2]", {"answer_type": "list"}, 1),
        ("\\boxed{[1, 2]}, not [3]", "[1, 2]", {"answer_type": "list"}, 1),
        ("[1, 2]: I think the answer is this", "[1, 2]", {"answer_type": "list"}, 1),
        ("['a', 'b']", "['a', 'b']", {"answer_type": "list"}, 1),
        ("[1]", "[1, 2]", {"answer_type": "list"}, 0),
        ("[7]", "7", {"answer_type": "list"}, 1),
        ("(B)", "7 cm", {"choices": OPTIONS, "question_type": "multi_choice"}, 1),
        ("7 cm", "7 cm", {"choices": OPTIONS, "answer_option": "B"}, 1),
        ("A", "7 cm", {"choices": OPTIONS, "answer_option": "B"}, 0),
        (" Red.!", "red", {"answer_type": "text"}, 1),
    ],
)
def test_mathvista(reply: str, reference: str, fields: dict[str, Any], expected: float) -> None:
    assert metrics.mathvista_score(reply, reference, **fields) == expected


def test_strict_mathvista_keeps_the_peers_weakness() -> None:
    assert mathvista_strict("0", "0", answer_type="integer") == 0
    assert mathvista_strict("7", "7", answer_type="integer") == 1
    assert mathvista_strict("The answer is 7", "7", answer_type="integer") == 0


@pytest.mark.parametrize(
    ("reply", "reference", "expected"),
    [
        ("12", "12", 1),
        ("The area is 12 cm", "12", 1),
        ("\\boxed{\\dfrac{3}{4}}", "0.75", 1),
        ("$45^\\circ$", "45", 1),
        ("1,234", "1234", 1),
        ("( 1 , 2 )", "(1,2)", 1),
        ("x = 7", "7", 1),
        ("North.", "north", 1),
        ("−3/4", "-0.75", 1),
        ("Answer: **12**", "12", 1),
        ("It is 12 cm^2", "12", 1),
        ("12^2", "12", 0),
        ("The answer is \\(\\frac{3}{4}\\).", "0.75", 1),
        ("12.004", "12", 0),
        ("It is 12.004 cm", "12", 0),
        ("16 or 24", "24", 0),
        ("24 or 16", "24", 0),
        ("\\sqrt{16}", "16", 0),
        ("x > 5", "5", 0),
        ("2x", "2", 0),
        ("12yards", "12", 1),
        ("10**9**9**9", "1", 0),
        ("__import__('os').getcwd()", "7", 0),
        ("", "7", 0),
    ],
)
def test_mathvision_open_questions(reply: str, reference: str, expected: float) -> None:
    assert metrics.mathvision_score(reply, reference) == expected


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        ("\\sqrt{16}", "4"),
        ("2^3", "8"),
        ("\\frac{\\pi}{2}", "0.5\\pi"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("3+4", "7"),
        ("2√3", "\\sqrt{12}"),
        ("2π", "2\\pi"),
        ("So the length is $2\\sqrt{3}$ cm.", "\\sqrt{12}"),
        ("The ratio is 3/4\n\nof them", "\\frac{3}{4}"),
    ],
)
def test_mathvision_expressions(reply: str, reference: str) -> None:
    pytest.importorskip("math_verify")
    assert metrics.mathvision_score(reply, reference) == 1
    assert metrics.mathvision_score(reply, "5") == 0


@given(st.integers(-(10**6), 10**6), st.integers(0, 3))
def test_numbers_answer_themselves(value: int, digits: int) -> None:
    assert metrics.mathvista_score(str(value), str(value), answer_type="integer") == 1
    assert metrics.mathvision_score(str(value), str(value)) == 1
    decimal = f"{value / 10**digits:.{digits}f}"
    assert metrics.mathvista_score(decimal, decimal, answer_type="float", precision=digits) == 1
    assert metrics.mathvision_score(f"The answer is {decimal}.", decimal) == 1


# ---------------------------------------------------------------------------------------------- boxes

# The same box in each family's dress; the picture is 200 x 100.
DRESSES = [
    "<|object_ref_start|>box<|object_ref_end|><|box_start|>(100,200),(500,600)<|box_end|>",
    "(100, 200) (500, 600)",
    "<ref>box</ref><box>[[100, 200, 500, 600]]</box>",
    "[0.1, 0.2, 0.5, 0.6]",
    "[.1,.2,.5,.6]",
    "(0.10, 0.20, 0.50, 0.60)",
    '```json\n[{"bbox_2d": [100, 200, 500, 600], "label": "box"}]\n```',
]


@pytest.mark.parametrize("reply", DRESSES)
def test_a_box_is_read_in_every_dress(reply: str) -> None:
    assert metrics.box_iou_score(reply, [20, 20, 100, 60], **SIZE) == 1
    assert boxes.box_iou(reply, [20, 20, 100, 60], **SIZE) == pytest.approx(1)


@pytest.mark.parametrize(
    ("reply", "unit", "expected"),
    [
        ("[20, 20, 100, 60]", "pixel", 1),
        ("[-20, 20, 100, 60]", "pixel", 1),
        ("[20, 20, 100, 60]", "auto", 0),
        ("[100, 200, 500, 600]", "per_mille", 1),
        ("[0.1, 0.2, 0.5, 0.6]", "unit", 1),
        ("[0.1, 0.2, 0.5, 0.6]", "per_mille", 0),
        ("[-0.1, 0.2, 0.5, 0.6]", "auto", 0),  # a number outside [0, 1] means per mille
        ("[0.5, 0.6, 0.1, 0.2]", "auto", 0),  # corners are not swapped
        ("[0.1, 0.2, 0.5]", "auto", 0),
        ("no box", "auto", 0),
    ],
)
def test_units_of_boxes(reply: str, unit: str, expected: float) -> None:
    assert metrics.box_iou_score(reply, [20, 20, 100, 60], **SIZE, box_unit=unit) == expected


def test_a_wrong_box_unit_is_named() -> None:
    with pytest.raises(ValueError, match="box_unit is 'percent'"):
        metrics.box_iou_score("[1, 2, 3, 4]", [0, 0, 1, 1], **SIZE, box_unit="percent")


corners = st.tuples(*[st.integers(0, 1000)] * 4).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]) + 1, max(box[1], box[3]) + 1)
)


@given(corners, corners)
def test_iou_is_symmetric_and_counts_cells(first: Sequence[int], second: Sequence[int]) -> None:
    value = boxes.iou(first, second)
    assert value == boxes.iou(second, first)
    assert boxes.iou(first, first) == 1
    across, down = (set(range(first[at], first[at + 2])) & set(range(second[at], second[at + 2])) for at in (0, 1))
    both = len(across) * len(down)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    assert math.isclose(value, both / (areas - both))


@given(corners)
def test_units_of_one_box_agree(box: Sequence[int]) -> None:
    pixels = [box[0] / 5, box[1] / 10, box[2] / 5, box[3] / 10]
    parts = ", ".join(f"{each / 1000:.6f}" for each in box)
    for reply, unit in ((str(list(box)), "per_mille"), (f"[{parts}]", "unit"), (str(pixels), "pixel")):
        assert boxes.box_iou(reply, pixels, **SIZE, box_unit=unit) == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------------------------------- aggregation


def test_mean_of_categories_and_its_standard_error() -> None:
    scores = [CategoryScore(1, ["a", "b"]), CategoryScore(0, ["a"]), CategoryScore(0, ["c"])]
    assert mean_of_categories(scores) == pytest.approx((0.5 + 1 + 0) / 3)
    assert [each.categories for each in pickle.loads(pickle.dumps(scores))] == [
        ("a", "b"),
        ("a",),
        ("c",),
    ]  # ranks gather
    values = [1, 0, 0, 1, 1, 0, 1]
    alone = [CategoryScore(each, ["a"]) for each in values]
    mean = sum(values) / 7
    expected = math.sqrt(sum((each - mean) ** 2 for each in values) / 6 / 7)
    assert mean_of_categories_stderr(alone) == pytest.approx(expected)
    assert math.isnan(mean_of_categories_stderr(alone[:1]))  # as of a run with --limit 1


def test_the_standard_error_agrees_with_the_bootstrap() -> None:
    chance = random.Random(0)
    kinds = [("a",), ("a", "b"), ("b", "c"), ("c",), ("a", "b", "c")]
    scores = [CategoryScore(float(chance.random() < 0.6), chance.choice(kinds)) for _ in range(300)]
    means = [mean_of_categories(chance.choices(scores, k=300)) for _ in range(1000)]
    centre = sum(means) / 1000
    spread = math.sqrt(sum((each - centre) ** 2 for each in means) / 999)
    assert mean_of_categories_stderr(scores) == pytest.approx(spread, rel=0.1)
