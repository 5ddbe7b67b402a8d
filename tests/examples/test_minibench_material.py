"""The questions of the benchmark in miniature: exact answers, splits without common content, and their tasks."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_mirror import Answering
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull

from examples.common.commands import ROOT
from examples.minibench import chart, geometry, grounding, ocr, vqa
from examples.minibench.material import CAPABILITIES, table, write
from examples.minibench.pictures import EMOJI
from examples.minibench.rows import SIDE, Row
from examples.minibench.scores import GROUP, TASK_FOLDER
from examples.minibench.splits import SPLITS, share
from examples.minibench.tables import series
from examples.minibench.turns import read

GENERATORS = {"vqa": vqa, "chart": chart, "ocr": ocr, "geometry": geometry, "grounding": grounding}


def rows(capability: str, count: int, split: str = "train") -> list[Row]:
    return list(itertools.islice(GENERATORS[capability].generate(split, 0), count))


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


def test_areas_and_perimeters_are_those_of_the_drawn_rectangles() -> None:
    found = by_kind("geometry", 100)
    for row in [*found["area"], *found["perimeter"]]:
        across, down = (np.flatnonzero(ink(row).any(axis)) for axis in (0, 1))
        width, height = (round((each[-1] - each[0] + 1) / 16) for each in (across, down))
        assert row.answer == str(width * height if row.kind == "area" else 2 * (width + height))


def test_counted_shapes_are_in_the_figure() -> None:
    """A polygon is told by its area in the smallest circle around it: 0.41 of a triangle, 0.64 of a square."""
    for row in by_kind("geometry", 200)["count"]:
        labels, total = ndimage.label(ink(row))
        shapes = []
        for number in range(1, total + 1):
            points = np.argwhere(labels == number)
            radius = np.sqrt(((points - points.mean(0)) ** 2).sum(1).max()) + 0.5  # from the centres of pixels
            shapes.append(len(points) / (np.pi * radius**2))
        bounds = {"triangles": (0, 0.54), "squares": (0.54, 0.74), "hexagons": (0.74, 1)}
        low, high = next(ends for name, ends in bounds.items() if name in row.question)
        assert row.answer == str(sum(low < shape <= high for shape in shapes))


def test_the_longer_segment_has_more_pixels() -> None:
    for row in by_kind("geometry", 100)["compare"]:
        color = {name: np.array(geometry.COLORS[name]) for name in row.choices}
        size = {name: (np.abs(pixels(row) - rgb).max(-1) < 30).sum() for name, rgb in color.items()}
        assert row.answer == (max if "longer" in row.question else min)(size, key=lambda name: size[name])


def test_angles_are_those_between_the_drawn_sides() -> None:
    for row in by_kind("geometry", 150)["angle"]:
        shown = pixels(row)
        black, red = (
            np.argwhere(mask)[:, ::-1] for mask in (shown.max(-1) < 110, (shown[..., 0] - shown[..., 1]) > 100)
        )
        hull = black[ConvexHull(black).vertices]
        corner = min(hull, key=lambda point: np.abs(np.linalg.norm(red - point, axis=1) - 14).max())
        one = max(black, key=lambda point: np.linalg.norm(point - corner)) - corner
        other = max(black - corner, key=lambda point: abs(point[0] * one[1] - point[1] * one[0]))
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert abs(np.degrees(np.arccos(cosine)) - float(row.answer[:-1])) < 8
        assert row.answer in row.choices
        assert all(abs(float(each[:-1]) - float(row.answer[:-1])) >= 25 for each in row.choices if each != row.answer)


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
    assert all({row.answer, row.question[:-1].split()[-1]} == names_of(row) for row in found["where"])


def test_boxes_end_where_the_pasted_pictures_do() -> None:
    """The pixels on both sides of an edge differ; a few pictures are as light as the background."""
    seen = []
    for row in rows("grounding", 200):
        left, top, right, bottom = row.box
        shown = np.pad(pixels(row), ((1, 1), (1, 1), (0, 0)), constant_values=1000)
        inside = shown[top + 1 : bottom + 1, left + 1 : right + 1]
        around = shown[top : bottom + 2, left : right + 2]
        edges = (
            (inside[0], around[0, 1:-1]), (inside[-1], around[-1, 1:-1]),
            (inside[:, 0], around[1:-1, 0]), (inside[:, -1], around[1:-1, -1]),
        )  # fmt: skip
        seen += [np.abs(one - other).max() > 25 for one, other in edges]
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
    assert np.mean(seen) > 0.97


def test_expressions_fit_their_boxes_among_those_of_a_picture() -> None:
    pictures = defaultdict(list)
    for row in rows("grounding", 400):
        pictures[id(row.picture)].append(row)
    for group in pictures.values():
        area = {row.question: (row.box[2] - row.box[0]) * (row.box[3] - row.box[1]) for row in group}
        for word, best in (("largest", max), ("smallest", min)):
            assert area.get(f"the {word} thing", best(area.values())) == best(area.values())


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
        assert 8 <= dark[-1] - dark[0] <= 64


def test_questions_about_a_chart() -> None:
    shown = chart.Chart("column", {"Ohio": 12.0, "Iowa": 4.5, "Utah": 30.0}, ("red", "blue", "green"), True)
    asked = {question: answer for _, question, answer in chart.ask(random.Random(0), shown)}
    pairs = {"Ohio": ("red", 12.0), "Iowa": ("blue", 4.5), "Utah": ("green", 30.0)}
    assert asked["How many bars are there?"] == "3"
    assert (asked["Which has the highest value?"], asked["Which has the lowest value?"]) == ("Utah", "Iowa")
    assert asked["What is the highest value?"] == "30"
    assert asked["What is the difference between the highest and the lowest value?"] == "25.5"
    assert (asked["What color is the largest bar?"], asked["What color is the smallest bar?"]) == ("green", "blue")
    for name, (color, value) in pairs.items():
        for question in (f"What is the value of {name}?", f"What is the value of the {color} bar?"):
            assert float(asked.get(question, value)) == value
        for other, (other_color, other_value) in pairs.items():
            larger = "yes" if value > other_value else "no"
            for question in (
                f"Is the value of {name} greater than that of {other}?",
                f"Is the {color} bar larger than the {other_color} bar?",
            ):
                assert asked.get(question, larger) == larger


def test_answers_about_charts_are_in_their_tables() -> None:
    for row in rows("chart", 200):
        columns = series(row.contents[0].removeprefix("table "))
        if row.kind == "extremum":
            assert any(row.answer in column for column in columns)
        if row.kind == "value":
            assert any(float(row.answer) in column.values() for column in columns)


def test_values_too_small_for_an_axis_are_not_asked() -> None:
    values = {"Ohio": 3.0, "Iowa": 60.0, "Utah": 40.0}
    for printed in (True, False):
        shown = chart.Chart("column", values, ("red", "blue", "green"), printed)
        told = {
            answer for seed in range(20) for kind, _, answer in chart.ask(random.Random(seed), shown) if kind == "value"
        }
        assert told == ({"3", "40", "60"} if printed else {"40", "60"})


@pytest.mark.parametrize("kind", ["column", "bar", "pie"])
def test_charts_show_their_values(kind: str) -> None:
    """The pixels of each colour are in proportion to the values."""
    values, colors = {"Ohio": 10.0, "Iowa": 25.0, "Utah": 40.0}, ("red", "blue", "green")
    shown = np.asarray(chart.draw(random.Random(0), chart.Chart(kind, values, colors, kind == "pie"))).astype(int)
    rgb = [np.array([int(chart.COLORS[name][at : at + 2], 16) for at in (1, 3, 5)]) for name in colors]
    sizes = np.array([(np.abs(shown - each).max(-1) < 8).sum() for each in rgb])
    np.testing.assert_allclose(sizes / sizes.sum(), np.array(list(values.values())) / 75, atol=0.04)


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


def test_what_models_are_taught_to_say_is_right_and_anything_else_wrong(material: Path) -> None:
    taught = {
        name: [reply for each in read(material, name, "validation")[1] for _, reply in each.turns]
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
    shown, conversations = read(material, "vqa", "validation")
    drawn = rows("vqa", 30, "validation")
    asked = [turn for each in conversations for turn in each.turns]
    assert [prompt.split("\n")[0] for prompt, _ in asked] == [row.question for row in drawn]
    assert Image.fromarray(shown[0].numpy().transpose(1, 2, 0)).tobytes() == drawn[0].picture.tobytes()
    assert len(shown) == len({id(row.picture) for row in drawn})
