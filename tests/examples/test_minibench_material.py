"""The questions of the benchmark in miniature: exact answers, splits without common content, and their tasks."""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_mirror import Answering
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from PIL import Image, ImageColor
from scipy import ndimage
from scipy.spatial import ConvexHull

from examples.common.commands import ROOT
from examples.minibench import chart, geometry, grounding, ocr, vqa
from examples.minibench import material as made
from examples.minibench.material import CAPABILITIES, table, write
from examples.minibench.pictures import EMOJI, SETS, named
from examples.minibench.rows import SIDE, Box, Row
from examples.minibench.scores import GROUP, TASK_FOLDER
from examples.minibench.splits import SPLITS, share
from examples.minibench.tables import series
from examples.minibench.turns import read_conversations, read_pictures, read_regions

GENERATORS = {"vqa": vqa, "chart": chart, "ocr": ocr, "geometry": geometry, "grounding": grounding}


@functools.cache
def drawn(capability: str, split: str) -> tuple[Iterator[Row], list[Row]]:
    """A generator, and what it has made so far: drawing takes most of the time of these tests."""
    return GENERATORS[capability].generate(split, 0), []


def rows(capability: str, count: int, split: str = "train") -> list[Row]:
    generator, made_so_far = drawn(capability, split)
    made_so_far.extend(itertools.islice(generator, max(0, count - len(made_so_far))))
    return made_so_far[:count]


# ------------------------------------------------------------ splits


def test_shares_are_a_partition_that_depends_on_nothing_but_the_contents() -> None:
    contents = [f"content {at}" for at in range(97)]
    parts = [share(contents, split) for split in SPLITS]
    assert sorted(itertools.chain(*parts)) == sorted(contents)
    assert [len(part) for part in parts] == [62, 12, 15, 8]
    assert parts == [share(reversed(contents), split) for split in SPLITS]
    assert all(len(share("abcd", split)) == 1 for split in SPLITS)
    with pytest.raises(ValueError, match="3 contents cannot be shared by 4 splits"):
        share("abc", "test")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_split_has_content_of_another(capability: str) -> None:
    found = {split: {each for row in rows(capability, 60, split) for each in row.contents} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert found[one]
        assert not found[one] & found[other]


def test_every_emoji_is_learned_as_one_of_the_two_sets_draws_it() -> None:
    parts = {split: named(split) for split in SPLITS}
    for name, emoji in EMOJI.items():
        keys = [key for split in SPLITS for key in parts[split][name]]
        assert sorted(keys) == sorted(f"{each} {sign}" for each in SETS for sign in emoji)  # each in one split
        assert {key.split()[1] for key in parts["train"][name]} == set(emoji)
        assert all(parts[split][name] for split in SPLITS)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_questions_about_a_training_picture_are_learned(capability: str) -> None:
    every = itertools.groupby(GENERATORS[capability].generate("train", 0), key=lambda row: id(row.picture))
    expected = [row.question for _, group in itertools.islice(every, 8) for row in group]
    assert [row.question for row in made.rows(capability, "train", 8, 0)] == expected


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_one_question_is_asked_about_a_test_picture_of_each_kind_as_often(capability: str) -> None:
    """As often as if the kinds that a picture allows were drawn evenly, up to four standard deviations."""
    count = 40 if capability == "chart" else 120  # charts are slow to draw
    asked = list(made.rows(capability, "test", count, 0))
    every = itertools.groupby(GENERATORS[capability].generate("test", 0), key=lambda row: id(row.picture))
    pictures = [list(group) for _, group in itertools.islice(every, count)]
    expected, variance = Counter[str](), Counter[str]()
    for row, about in zip(asked, pictures, strict=True):
        assert row.picture.tobytes() == about[0].picture.tobytes()
        assert (row.kind, row.question, row.answer) in {(each.kind, each.question, each.answer) for each in about}
        kinds = {each.kind for each in about}
        for kind in kinds:
            expected[kind] += 1 / len(kinds)
            variance[kind] += (1 - 1 / len(kinds)) / len(kinds)
    found = Counter(row.kind for row in asked)
    for kind, number in expected.items():
        assert abs(found[kind] - number) <= 4 * variance[kind] ** 0.5


@pytest.mark.slow
def test_the_same_seed_makes_the_same_bytes() -> None:
    """Also in another process, where sets of texts have another order."""
    script = (
        "from examples.minibench.material import CAPABILITIES, table\n"
        "for each in CAPABILITIES: print(table(each, 'test', 8, 3).with_format('arrow')[:].to_pylist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr

    def content(capability: str, seed: int) -> str:
        return str(table(capability, "test", 8, seed).with_format("arrow")[:].to_pylist())

    assert told.stdout.splitlines() == [content(each, 3) for each in CAPABILITIES]
    assert all(content(each, 3) != content(each, 4) for each in CAPABILITIES)


# ------------------------------------------------------------ answers, read from the pictures


def pixels(row: Row) -> np.ndarray:
    return np.asarray(row.picture.convert("RGB")).astype(int)


def ink(row: Row) -> np.ndarray:
    """Where a figure is not as its upper left corner, which is background in every figure but those with a grid."""
    shown = pixels(row)
    return np.abs(shown - shown[0, 0]).max(-1) > 90


def by_kind(capability: str, count: int) -> dict[str, list[Row]]:
    found = defaultdict(list)
    for row in rows(capability, count):
        found[row.kind].append(row)
    return found


def around(mask: np.ndarray) -> Box:
    """The box of what is in the mask."""
    down, across = np.nonzero(mask)
    return int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    labels, _ = ndimage.label(mask)
    return labels == 1 + np.bincount(labels.flat)[1:].argmax()


def far(one: Box, other: Box) -> int:
    """The pixels between the edges of two boxes that are farthest apart."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def colored(shown: np.ndarray, rgb: Any, within: int = 30) -> np.ndarray:
    """Where a picture has a colour."""
    return np.abs(shown - np.array(rgb)).max(-1) < within


def test_areas_and_perimeters_are_those_of_the_drawn_rectangles() -> None:
    found = by_kind("geometry", 100)
    for row in [*found["area"], *found["perimeter"]]:
        across, down = (np.flatnonzero(ink(row).any(axis)) for axis in (0, 1))
        width, height = (round((each[-1] - each[0] + 1) / 16) for each in (across, down))
        assert row.answer == str(width * height if row.kind == "area" else 2 * (width + height))
        assert [each.label for each in row.regions] == ["rectangle"]
        assert far(row.regions[0].box, around(ink(row))) <= 1


def test_counted_shapes_are_in_the_figure() -> None:
    """A polygon is told by its area in the smallest circle around it: 0.41 of a triangle, 0.64 of a square."""
    bounds = {"triangle": (0, 0.54), "square": (0.54, 0.74), "circle": (0.74, 1.01)}
    touching, found = 0, by_kind("geometry", 300)["count"]
    for row in found:
        labels, total = ndimage.label(ink(row))
        if total != len(row.regions):
            touching += 1
            continue
        shapes = []
        for number in range(1, total + 1):
            points = np.argwhere(labels == number)
            radius = np.sqrt(((points - points.mean(0)) ** 2).sum(1).max()) + 0.5  # from the centres of pixels
            part = len(points) / (np.pi * radius**2)
            shapes.append(next(name for name, (low, high) in bounds.items() if low < part <= high))
            (region,) = [each for each in row.regions if far(each.box, around(labels == number)) <= 2]
            assert region.label == shapes[-1]
        assert row.answer == str(sum(f"How many {shape}s " in row.question for shape in shapes))
    assert touching < 0.05 * len(found)


def test_the_longer_segment_has_more_pixels() -> None:
    for row in by_kind("geometry", 100)["compare"]:
        color = {name: colored(pixels(row), geometry.COLORS[name]) for name in row.choices}
        assert row.answer == (max if "longer" in row.question else min)(color, key=lambda name: color[name].sum())
        assert {each.label for each in row.regions} == {f"{name} segment" for name in color}
        for region in row.regions:
            shown = color[region.label.split()[0]]
            assert far(region.box, around(largest(shown))) <= 3  # the box is that of the line without its width
            # The first and the last point are the ends, which may be rounded outwards.
            assert all(shown[down, across] for across, down in region.points[1:-1])
            assert len(region.points) > 2


def test_angles_are_those_between_the_drawn_sides() -> None:
    seen = set()
    for row in by_kind("geometry", 300)["angle"]:
        shown = pixels(row)
        black, red = (
            np.argwhere(mask)[:, ::-1] for mask in (shown.max(-1) < 110, (shown[..., 0] - shown[..., 1]) > 100)
        )
        hull = black[ConvexHull(black).vertices]
        corner = min(hull, key=lambda point: np.abs(np.linalg.norm(red - point, axis=1) - 14).max())
        one = max(black, key=lambda point: np.linalg.norm(point - corner)) - corner
        other = max(black - corner, key=lambda point: abs(point[0] * one[1] - point[1] * one[0]))
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        degrees = np.degrees(np.arccos(cosine))
        assert row.answer == ("acute" if degrees < 82 else "right" if degrees < 98 else "obtuse")
        assert row.choices == ("acute", "right", "obtuse")
        (region,) = row.regions
        assert region.label == f"{row.answer} angle"
        assert far(region.box, around(shown.max(-1) < 110)) <= 3
        for across, down in region.points:
            near = shown[max(0, down - 1) : down + 2, max(0, across - 1) : across + 2]
            assert near.min() < 110
        seen.add(row.answer)
    assert seen == set(geometry.ANGLES)


def names_of(row: Row) -> set[str]:
    return {name for name, emoji in EMOJI.items() for key in row.contents if key.split()[1] in emoji}


def test_answers_about_scenes_agree_with_what_was_pasted() -> None:
    found = by_kind("vqa", 400)
    assert all({row.answer} == names_of(row) for row in found["what"])
    for row in found["exists"]:
        asked = row.question.removeprefix("Is there a ").split()[0]
        assert row.answer == ("yes" if asked in names_of(row) else "no")
    assert {row.answer for row in found["exists"]} == {"yes", "no"}
    for row in found["count"]:
        (asked,) = [name for name in EMOJI if f"How many {name}" in row.question]
        assert 4 >= int(row.answer) >= sum(key.split()[1] in EMOJI[asked] for key in row.contents) > 0
        assert int(row.answer) == sum(region.label == asked for region in row.regions)
    for row in found["where"]:
        middle = {each.label: np.add(each.box[:2], each.box[2:]) / 2 for each in row.regions}
        other = row.question[:-1].split()[-1]
        assert {row.answer, other} == names_of(row) == set(middle)
        across, down = middle[row.answer] - middle[other]
        assert {"left": across < 0, "right": across > 0, "above": down < 0, "below": down > 0}[
            next(word for word in ("left", "right", "above", "below") if word in row.question)
        ]
    assert all({each.label for each in row.regions} == names_of(row) for kind in found.values() for row in kind)


def test_boxes_end_where_the_pasted_pictures_do() -> None:
    """The pixels on both sides of an edge differ; a few pictures are as light as the background."""
    seen = []
    for row in [*rows("grounding", 200), *rows("vqa", 200)]:
        shown = np.pad(pixels(row), ((1, 1), (1, 1), (0, 0)), constant_values=1000)
        for region in row.regions:
            left, top, right, bottom = region.box
            inside = shown[top + 1 : bottom + 1, left + 1 : right + 1]
            outside = shown[top : bottom + 2, left : right + 2]
            edges = (
                (inside[0], outside[0, 1:-1]), (inside[-1], outside[-1, 1:-1]),
                (inside[:, 0], outside[1:-1, 0]), (inside[:, -1], outside[1:-1, -1]),
            )  # fmt: skip
            seen += [np.abs(one - other).max() > 25 for one, other in edges]
            assert 0 <= left < right <= SIDE
            assert 0 <= top < bottom <= SIDE
        assert row.box is None or row.box in [region.box for region in row.regions]
    assert np.mean(seen) > 0.97


def test_expressions_fit_their_boxes_among_those_of_a_picture() -> None:
    pictures = defaultdict(list)
    for row in rows("grounding", 400):
        pictures[id(row.picture)].append(row)
    for group in pictures.values():
        area = {row.question: (row.box[2] - row.box[0]) * (row.box[3] - row.box[1]) for row in group}
        for word, best in (("largest", max), ("smallest", min)):
            assert area.get(f"the {word} thing", best(area.values())) == best(area.values())
        for row in group:
            (label,) = [each.label for each in row.regions if each.box == row.box]
            same = [each.box for each in row.regions if each.label == label]
            if row.kind == "name":
                assert (row.question, len(same)) == (f"the {label}", 1)
            if row.kind == "side":
                (other,) = [each for each in same if each != row.box]
                side = row.question.removeprefix("the ").removesuffix(f" {label}")
                across, down = np.add(row.box[:2], row.box[2:]) - np.add(other[:2], other[2:])
                assert {"left": across < 0, "right": across > 0, "upper": down < 0, "lower": down > 0}[side]


def test_written_words_and_digits_are_the_answers() -> None:
    found = by_kind("ocr", 100)
    assert all(row.contents[0] == f"{row.kind} {row.answer}" for row in [*found["word"], *found["number"]])
    assert all(f"word {row.answer}" == row.contents["lower" in row.question] for row in found["line"])
    target = ocr.handwritten()[1]
    for row in found["handwriting"]:
        shown = {str(target[int(each.split()[1])]) for each in row.contents}
        assert set(row.answer) == shown
    for row in [*found["word"], *found["number"]]:  # something dark is written, in one line
        dark = np.flatnonzero((pixels(row).max(-1) < 130).any(1))
        assert 8 <= dark[-1] - dark[0] <= 42


def test_characters_are_where_their_boxes_are() -> None:
    """In squares of a quarter of the side, from left to right, with no ink outside of the boxes."""
    for row in rows("ocr", 100):
        dark, inside = pixels(row).max(-1) < 130, np.zeros((SIDE, SIDE), bool)
        lines: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for region in row.regions:
            left, top, right, bottom = region.box
            assert dark[top:bottom, left:right].any()
            inside[top:bottom, left:right] = True
            lines[4 * (top + bottom) // 2 // SIDE].append((4 * (left + right) // 2 // SIDE, region.label))
        assert not (dark & ~inside).any()
        for line in lines.values():
            assert [at for at, _ in line] == list(range(line[0][0], line[0][0] + len(line)))
        said = {at: "".join(label for _, label in line) for at, line in lines.items()}
        if row.kind == "line":
            assert row.answer.upper() == said[(max if "lower" in row.question else min)(said)]
        else:
            assert [row.answer.upper()] == list(said.values())


TYPES = tuple(chart.MARKS)
VALUES = {"red": 2, "blue": 5, "green": 3}


def test_questions_about_a_chart() -> None:
    shown = chart.Chart("column", VALUES)
    asked = {question: answer for _, question, answer in chart.ask(random.Random(0), shown)}
    assert asked["How many bars are there?"] == "3"
    assert (asked["What color is the largest bar?"], asked["What color is the smallest bar?"]) == ("blue", "red")
    assert asked["What is the difference between the largest and the smallest bar?"] == "3"
    compared = 0
    for color, value in VALUES.items():
        assert asked[f"What is the value of the {color} bar?"] == str(value)
        for other, other_value in VALUES.items():
            question = f"Is the {color} bar larger than the {other} bar?"
            assert asked.get(question) in {None, "yes" if value > other_value else "no"}
            compared += question in asked
    assert compared in {1, 2}  # the same two may be drawn twice


def test_slices_have_shares_but_no_values() -> None:
    asked = chart.ask(random.Random(0), chart.Chart("pie", VALUES))
    assert {kind for kind, _, _ in asked} == {"count", "extremum", "comparison"}
    assert all("slice" in question for _, question, _ in asked)


def test_values_of_charts_are_in_their_tables() -> None:
    """The values of a chart are those of one column in a round unit, rounded, and all different."""
    pictures = defaultdict(list)
    for row in rows("chart", 200):
        pictures[id(row.picture)].append(row)
    for group in pictures.values():
        values = [int(row.answer) for row in group if row.kind == "value"]
        assert len(set(values)) == len(values)
        assert all(1 <= value <= chart.HIGHEST for value in values)
        if values:
            assert group[0].answer == str(len(values))
            assert any(
                set(values) <= {round(each / (unit * 10.0**power)) for each in column}
                for column in series(group[0].contents[0].removeprefix("table "))
                for unit in (1, 2, 5)
                for power in range(-2, 5)
            )


@pytest.mark.parametrize("kind", TYPES)
def test_charts_show_their_values_where_their_regions_are(kind: str) -> None:
    """Read from the pixels of each colour: their number, and for points their height over the axis."""
    for seed in range(5):
        picture, regions = chart.draw(random.Random(seed), chart.Chart(kind, VALUES))
        shown = np.asarray(picture).astype(int)
        assert [each.label for each in regions] == list(VALUES)
        marks = {
            each.label: largest(colored(shown, ImageColor.getrgb(chart.COLORS[each.label]), 12)) for each in regions
        }
        if kind == "line":
            middles = {color: ndimage.center_of_mass(mask)[0] for color, mask in marks.items()}
            unit = (middles["red"] - middles["blue"]) / (VALUES["blue"] - VALUES["red"])
            sizes = np.array([VALUES["red"] + (middles["red"] - middles[color]) / unit for color in VALUES])
            axis = np.median(shown.max(-1), 1).argmin()  # the darkest line across
            assert abs(axis - (middles["red"] + VALUES["red"] * unit)) <= 2
        else:
            sizes = np.array([mask.sum() for mask in marks.values()])
        expected = np.array(list(VALUES.values()))
        np.testing.assert_allclose(sizes / sizes.sum(), expected / expected.sum(), atol=0.03)
        for region in regions:
            assert far(region.box, around(marks[region.label])) <= (5 if kind == "pie" else 1)  # slices have an edge
            if region.points:  # those of a slice reach up to its edges, which are drawn in another colour
                assert np.mean([marks[region.label][down, across] for across, down in region.points]) > 0.8
        assert all(bool(region.points) == (kind in {"line", "pie"}) for region in regions)


# ------------------------------------------------------------ the tasks


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write(folder, {"validation": 30}, seed=0)
    return folder


def evaluate(material: Path, reply: Any) -> dict[str, float]:
    sources = {f"{GROUP}/{name}": str(material / name) for name in CAPABILITIES}
    metadata = {"split": "validation", "sources": sources}
    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False, metadata=metadata)
    results = simple_evaluate(Answering(reply), tasks=[GROUP], task_manager=manager, bootstrap_iters=0)["results"]
    return {name: results[f"{GROUP}_{name}"]["score,none"] for name in CAPABILITIES}


@pytest.mark.slow
def test_what_models_are_taught_to_say_is_right_and_anything_else_wrong(material: Path) -> None:
    taught = {
        name: [reply for each in read_conversations(material, name, "validation") for _, reply in each.turns]
        for name in CAPABILITIES
    }

    def name_of(doc: Mapping[str, Any]) -> str:
        if "box" in doc:
            return "grounding"
        if "pid" in doc:
            return "geometry"
        if "type" in doc:
            return "chart"
        return "ocr" if "writ" in doc["prompt"] or "word?" in doc["prompt"] else "vqa"

    right = evaluate(material, lambda doc: taught[name_of(doc)][doc["picture"]])
    assert right == dict.fromkeys(CAPABILITIES, 1.0)
    wrong = evaluate(material, lambda doc: "[0.00, 0.00, 1.00, 1.00]" if "box" in doc else "zebra")
    assert wrong == dict.fromkeys(CAPABILITIES, 0.0)


def test_written_files_are_kept_when_writing_goes_on(material: Path) -> None:
    files = {file: file.stat().st_mtime_ns for file in material.rglob("*.parquet")}
    write(material, {"validation": 30}, seed=0)
    assert {file: file.stat().st_mtime_ns for file in material.rglob("*.parquet")} == files
    assert len(files) == len(CAPABILITIES)


def test_pictures_are_read_as_they_were_drawn(material: Path) -> None:
    shown = read_pictures(material, "vqa", "validation")
    conversations = read_conversations(material, "vqa", "validation")
    drawn = list(made.rows("vqa", "validation", 30, 0))
    asked = [turn for each in conversations for turn in each.turns]
    assert [prompt.split("\n")[0] for prompt, _ in asked] == [row.question for row in drawn]
    assert Image.fromarray(shown[0].numpy().transpose(1, 2, 0)).tobytes() == drawn[0].picture.tobytes()
    assert len(shown) == len({id(row.picture) for row in drawn}) == len(drawn) == 30
    assert read_regions(material, "vqa", "validation") == [list(row.regions) for row in drawn]


def test_some_kinds_of_question_are_read_of_the_first_pictures_only(tmp_path: Path) -> None:
    write(tmp_path, {"train": 10}, seed=0, capabilities=["chart"])
    every = read_conversations(tmp_path, "chart", "train")
    shown = read_pictures(tmp_path, "chart", "train")
    some = read_conversations(tmp_path, "chart", "train", {"value"}, 0.2)
    assert len(shown) == 10
    assert some[:2] == every[:2]
    asked_for = [turn for each in some[2:] for turn in each.turns]
    assert asked_for
    assert all(prompt.startswith("What is the value of") for prompt, _ in asked_for)
    assert len(asked_for) == sum(
        prompt.startswith("What is the value") for each in every[2:] for prompt, _ in each.turns
    )
    assert {each.picture for each in every[2:] if "value" in str(each.turns)} == {each.picture for each in some[2:]}
