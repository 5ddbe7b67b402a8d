"""Boxes as model families write them, in their units, and pictures that lie on their side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import end_to_end as c
import pytest
import transformers as t
import zoo
from hypothesis import given
from hypothesis import strategies as st
from mllm_runs import evaluate, lively, model, png, task
from PIL import Image, ImageDraw
from transformers.models.kosmos2.processing_kosmos2 import patch_index_to_coordinate

from mergekit_mm.evaluation.tasks import boxes, grounding, scoring
from mergekit_mm.evaluation.tasks.box_forms import read_box

BOX = [64, 96, 320, 384]  # of a picture of 640 x 480: 0.1, 0.2, 0.5, 0.8 of it
SIZE = {"image_width": 640, "image_height": 480}
FORMS = [
    "[100, 200, 500, 800]",
    "[100,200,500,800,]",
    "[[100, 200, 500, 800]]",
    "[[100, 200], [500, 800]]",
    "[(100, 200), (500, 800)]",
    "(100, 200, 500, 800)",
    "(100, 200), (500, 800)",
    "from (100, 200) to (500, 800)",
    "top left (100, 200), bottom right (500, 800)",
    "100, 200, 500, 800",
    "100 200 500 800",
    "The box is 100, 200, 500, 800.",
    "{100, 200, 500, 800}",
    "[100 200 500 800]",
    "[100; 200; 500; 800]",
    '["100", "200", "500", "800"]',
    "<box>(100,200),(500,800)</box>",
    "<|box_start|>(100,200),(500,800)<|box_end|>",
    "<ref>it</ref><box>[[100, 200, 500, 800]]</box>",
    "<|det|>[[100, 200, 500, 800]]<|/det|>",
    "<|begin_of_box|>[[100, 200, 500, 800]]<|end_of_box|>",
    '```json\n[{"bbox_2d": [100, 200, 500, 800], "label": "it"}]\n```',
    '{"x1": 100, "y1": 200, "x2": 500, "y2": 800}',
    '{"x1": "100", "y1": "200", "x2": "500", "y2": "800"}',
    "x1=100, y1=200, x2=500, y2=800",
    '{"x_min": 100, "y_min": 200, "x_max": 500, "y_max": 800}',
    '{"xmin": 0.1, "ymin": 0.2, "xmax": 0.5, "ymax": 0.8}',
    '{"label": "it", "ymin": 200, "xmin": 100, "ymax": 800, "xmax": 500}',
    "left: 100, top: 200, right: 500, bottom: 800",
    '{"x": 100, "y": 200, "width": 400, "height": 600}',
    '{"x": 0.1, "y": 0.2, "w": 0.4, "h": 0.6}',
    '{"box_2d": [200, 100, 800, 500], "label": "it"}',
    "[ymin, xmin, ymax, xmax] = [200, 100, 800, 500]",
    "[0.1, 0.2, 0.5, 0.8]",
    "[0.1 0.2 0.5 0.8]",
    "[.1, .2, .5, .8]",
    "[10%, 20%, 50%, 80%]",
    '{"left": "10%", "top": "20%", "right": "50%", "bottom": "80%"}',
    "{<10><20><50><80>}",
    "<loc0205><loc0102><loc0819><loc0512> it",
    "<loc_100><loc_200><loc_500><loc_800>",
    "it<loc_100><loc_200><loc_500><loc_800>",
    "<think>maybe [0, 0, 10, 10]</think>[100, 200, 500, 800]",
    "[100, 200, 500, 800]\n\nQuestion: next?\nAnswer: [0, 0, 10, 10]",
    "[100, 200, 500, 800] or [0, 0, 10, 10]",
    "（100，200，500，800）",
    "[1e2, 2e2, 5e2, 8e2]",
    "The picture has (640, 480) pixels. The box is (100, 200), (500, 800).",
    "[64px, 96px, 320px, 384px]",
    "(64, 96, 320, 384) in pixels",
    "64, 96, 320, 384 px",
    "from (100, 200) to its opposite (500, 800)",
]


@pytest.mark.parametrize("reply", FORMS)
def test_one_box_in_every_form(reply: str) -> None:
    assert boxes.box_iou(reply, BOX, **SIZE) == pytest.approx(1, abs=0.006)


@pytest.mark.parametrize(
    "reply", ["", "no box", "[1, 2, 3]", "1, 2, 3, 4, 5", "(1, 2)", "in 2011, 5 of 7", "[a, b, c, d]"]
)
def test_no_box(reply: str) -> None:
    assert read_box(reply) is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("[-0.003, 0.2, 0.5, 1.002]", [-0.003, 0.2, 0.5, 1.002]),
        ("[0.1, 0.2, 0.5, 1.01]", [0.1, 0.2, 0.5, 1.01]),
        ("[−0.01, 0.2, 0.5, 0.8]", [-0.01, 0.2, 0.5, 0.8]),
        ("[-0.1, 0.2, 0.5, 0.8]", [-0.0001, 0.0002, 0.0005, 0.0008]),
        ("[0, 0, 1, 2]", [0, 0, 0.001, 0.002]),
    ],
)
def test_a_hair_outside_of_the_picture_is_no_other_unit(reply: str, expected: Sequence[float]) -> None:
    written = read_box(reply)
    assert written is not None
    pixels = boxes.to_pixels(written, 640, 480, "auto")
    assert pixels == pytest.approx([part * size for part, size in zip(expected, (640, 480) * 2, strict=True)])


@given(st.integers(0, 1023), st.integers(0, 1023))
def test_cells_of_kosmos_are_read_as_its_processor_does(first: int, last: int) -> None:
    reply = f"<phrase>it</phrase><object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
    written = read_box(reply)
    assert written is not None
    assert written.numbers == pytest.approx(patch_index_to_coordinate(first, last, 32))
    assert (written.unit, written.is_x_first) == ("unit", True)


@pytest.mark.parametrize(
    ("reply", "family", "shown", "unit", "is_right"),
    [
        ("[32, 48, 160, 192]", "qwen2_5_vl", (320, 240), "auto", True),
        ('[{"bbox_2d": [32, 48, 160, 192]}]', "qwen2_5_omni_thinker", (320, 240), "auto", True),
        ("[0.1, 0.2, 0.5, 0.8]", "qwen2_5_vl", (320, 240), "auto", True),
        ("[32, 48, 160, 192] pixels", "qwen2_5_vl", (320, 240), "auto", True),
        ("[64, 96, 320, 384] pixels", "qwen2_vl", (320, 240), "auto", True),
        ("[100, 200, 500, 800]", "qwen2_5_vl", (320, 240), "per_mille", True),  # fine-tuned on those
        ("[100, 200, 500, 800]", "qwen2_vl", (320, 240), "auto", True),
        ("[32, 48, 160, 192]", "qwen2_vl", (320, 240), "resized", True),
        ("[32, 48, 160, 192]", "qwen2_vl", (320, 240), "auto", False),
        ("[64, 96, 320, 384]", None, None, "resized", True),  # a model that does not tell: as stored
        ("[64, 96, 320, 384]", "qwen2_5_vl", (320, 240), "pixel", True),
        ("[200, 100, 800, 500]", "gemma4", None, "auto", True),
        ("[200, 100, 800, 500]", "gemma4", None, "per_mille", True),
        ('{"x1": 100, "y1": 200, "x2": 500, "y2": 800}', "gemma4", None, "auto", True),  # says its order
        ("<loc0205><loc0102><loc0819><loc0512>", "paligemma", None, "auto", True),
    ],
)
def test_the_family_tells_the_unit(
    reply: str, family: str | None, shown: tuple[int, int] | None, unit: str, is_right: bool
) -> None:
    iou = boxes.box_iou(reply, BOX, **SIZE, box_unit=unit, family=family, shown=shown)
    assert (iou == pytest.approx(1, abs=0.006)) == is_right


# -------------------------------------------------------------------------------------- pictures that lie on their side


def lying(orientation: int) -> tuple[dict[str, Any], list[int]]:
    """A stored picture with an EXIF mark, and the box of its red part as stored."""
    stored, box = Image.new("RGB", (60, 40), "white"), [6, 10, 24, 36]
    ImageDraw.Draw(stored).rectangle([6, 10, 23, 35], fill="red")
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(data, "PNG", exif=exif)
    return {"bytes": data.getvalue(), "path": None}, box


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_and_box_are_turned_alike(orientation: int) -> None:
    image, box = lying(orientation)
    doc = {"image": image, "box": box, "box_unit": "auto"}
    (shown,) = grounding.pictures(doc)
    truth, width, height = grounding.upright_truth(doc)
    assert shown.size == (width, height)
    red = shown.convert("RGB").split()[1].point(lambda green: 255 if green < 128 else 0).getbbox()
    assert list(truth) == list(red)
    seen = "[{}, {}, {}, {}]".format(*(at / size for at, size in zip(red, (width, height) * 2, strict=True)))
    assert scoring.refcoco(doc, [seen])["iou"] == pytest.approx(1)


# ------------------------------------------------------------------------------------- pixels as the model saw them

PAD = {
    zoo.IMAGE: "<|image_pad|>",
    zoo.VIDEO: "<|video_pad|>",
    zoo.V_START: "<|vision_start|>",
    zoo.V_END: "<|vision_end|>",
}


@pytest.fixture(scope="module")
def qwen2_5_vl() -> Path:
    """A checkpoint that sees pictures of 40 x 28 to 56 x 56 x 4 pixels."""
    path = c.fresh("qwen2_5_vl_boxes")
    lively(t.Qwen2_5_VLForConditionalGeneration(zoo.qwen2_5_vl())).save_pretrained(path)
    grid = {"patch_size": 14, "merge_size": 2, "min_pixels": 28 * 28, "max_pixels": 56 * 56 * 4}
    before = dict(zoo.SPECIAL)
    try:
        zoo.SPECIAL.update(PAD)
        tokenizer = zoo.tokenizer(image_token=PAD[zoo.IMAGE], video_token=PAD[zoo.VIDEO])
    finally:
        zoo.SPECIAL.clear()
        zoo.SPECIAL.update(before)
    images, videos = t.Qwen2VLImageProcessor(**grid), t.Qwen2VLVideoProcessor(**grid)
    t.Qwen2_5_VLProcessor(images, tokenizer, videos).save_pretrained(path)
    return path


def test_the_model_tells_the_scorer_how_large_it_saw_the_picture(qwen2_5_vl: Path) -> None:
    """Pictures of two sizes in one batch, and one that a limit makes smaller."""
    docs = [
        {"prompt": "<image>where?", "image": png(n, width=w, height=h)}
        for n, (w, h) in enumerate([(100, 60), (30, 90)])
    ]
    seen: dict[int, Any] = {}

    def keep(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        seen[len(seen)] = (getattr(results[0], "family", None), getattr(results[0], "pictures", None))
        return {"score": 0.0}

    grounded = task(docs, process_results=keep)
    evaluate(model(qwen2_5_vl, batch_size=2), grounded)
    assert seen == {0: ("qwen2_5_vl", ((112, 56),)), 1: ("qwen2_5_vl", ((28, 84),))}
    seen.clear()
    evaluate(model(qwen2_5_vl, max_pixels=28 * 56), grounded)
    assert [sizes[0][0] * sizes[0][1] <= 28 * 56 for _, sizes in seen.values()] == [True, True]


def test_a_box_in_pixels_of_the_resized_picture_is_right(qwen2_5_vl: Path) -> None:
    """By `auto`, with what the model's own reply carries; the words are those of a faultless model."""
    lm = model(qwen2_5_vl)
    image = {"bytes": png(0, width=100, height=60)["bytes"], "path": None}
    sample = evaluate(lm, task([{"prompt": "<image>where?", "image": image}]))["samples"]["mine"][0]
    reply = sample["filtered_resps"][0]
    (wide, high) = reply.pictures[0]
    faultless = type(reply)(f'[{{"bbox_2d": [{0.1 * wide}, {0.2 * high}, {0.5 * wide}, {0.8 * high}]}}]')
    faultless.family, faultless.pictures = reply.family, reply.pictures
    doc = {"image": image, "box": [10, 12, 50, 48], "box_unit": "auto"}
    assert scoring.refcoco(doc, [faultless])["iou"] == pytest.approx(1)
    assert scoring.refcoco(doc, [str(faultless)])["iou"] < 0.2


def test_replies_keep_what_they_carry_in_the_cache(qwen2_5_vl: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def keep(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        seen.append(results[0].pictures)
        return {"score": 0.0}

    grounded = task([{"prompt": "<image>where?", "image": png(0, width=100, height=60)}], process_results=keep)
    for _ in range(2):
        evaluate(model(qwen2_5_vl), grounded, use_cache=str(tmp_path / "cache"))
    assert seen == [((112, 56),)] * 2
