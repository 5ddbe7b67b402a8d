"""How the models of the benchmark in miniature learn: what they see, what they are asked, what may change in them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from mllm_runs import lively
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.common.training import Stage
from examples.minibench import training
from examples.minibench.alignment import queries
from examples.minibench.learn import frozen_features, pixel_values
from examples.minibench.material import CAPABILITIES, STEP, write
from examples.minibench.model import Size, make_tower
from examples.minibench.plan import QUICK
from examples.minibench.rows import SIDE, Box, Region
from examples.minibench.scores import GROUP, TASK_FOLDER
from examples.minibench.tower import patch_targets, train_tower
from examples.minibench.turns import Conversation, Encoder, read_conversations, read_pictures, read_regions
from mergekit_mm.evaluation.model.mllm import MLLM

SIZE = Size(width=32, layers=1, mlp=32, vision_width=32, vision_layers=1)
PLAN = replace(QUICK, size=SIZE, tower=Stage(2, 6, 1e-3), alignment=Stage(2, 5, 1e-3), base=Stage(2, 5, 1e-3), rank=2)
LINEAR = re.compile(r".*language_model\.(model\.)?layers\.\d+\.(self_attn|mlp)\.\w+_proj")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `material`, a `tower`, a `base` on it, and a `full` and a `lora` expert of it."""
    folder = tmp_path_factory.mktemp("training")
    write(folder / "material", {"train": 8}, seed=0)
    for name in ("tower", "aligned", "features", "base", "full", "lora"):
        (folder / name).mkdir()
    material, base = folder / "material", folder / "base"
    training.make_trained_tower(material, PLAN, 0, folder / "tower")
    training.make_aligned(material, folder / "tower", PLAN, 0, folder / "aligned")
    training.make_features(material, folder / "aligned", folder / "features")
    training.make_base(material, folder / "features", folder / "aligned", PLAN, 0, base)
    for name, rank in (("full", None), ("lora", PLAN.rank)):
        training.make_expert(
            material, folder / "features", base, "ocr", PLAN, Stage(3, 4, 1e-2), rank, 0, folder / name
        )
    return folder


# ------------------------------------------------------------ what the tower learns


@st.composite
def regions(draw: st.DrawFn) -> Region:
    (left, right), (top, bottom) = (
        sorted((draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1)))) for _ in "xy"
    )
    place = st.integers(-2, SIDE + 2)  # a line may end outside of the picture
    points = draw(st.lists(st.tuples(place, place), max_size=3))
    return Region(draw(st.sampled_from("abc")), (left, top, right + 1, bottom + 1), tuple(points))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(regions(), max_size=4), min_size=1, max_size=2), st.sampled_from([16, 32]))
def test_patches_have_the_targets_of_the_last_region_that_they_show(drawn: list[list[Region]], patch: int) -> None:
    """Against a plain restatement, patch by patch."""
    classes, boxes = patch_targets(drawn, "abc", patch)
    across = SIDE // patch

    def place(pixels: int) -> int:
        return min(max(pixels // patch, 0), across - 1)

    for at, shown in enumerate(drawn):
        for number in range(across**2):
            row, column = divmod(number, across)
            expected, box = 0, (0.0,) * 4
            for region in shown:
                left, top, right, bottom = region.box
                if region.points:
                    mine = {(place(y), place(x)) for x, y in region.points}
                else:
                    mine = {
                        (r, c)
                        for r in range(across)
                        for c in range(across)
                        if left <= (c + 0.5) * patch < right and top <= (r + 0.5) * patch < bottom
                    } or {(place((top + bottom) // 2), place((left + right) // 2))}
                if (row, column) in mine:
                    expected, box = 1 + "abc".index(region.label), tuple(edge / SIDE for edge in region.box)
            assert classes[at, number] == expected
            assert tuple(boxes[at, number].tolist()) == box


@pytest.mark.slow
def test_a_tower_learns_what_is_drawn_where(tmp_path: Path) -> None:
    write(tmp_path, {"train": 4}, seed=0, capabilities=["vqa", "geometry"])
    shares = [
        (read_pictures(tmp_path, name, "train"), read_regions(tmp_path, name, "train")) for name in ("vqa", "geometry")
    ]
    torch.manual_seed(0)
    course = train_tower(make_tower(SIZE), shares, Stage(41, 8, 1e-2), 0)
    assert [step for step, _ in course] == [0, 20, 40]
    assert course[-1][1] < 0.5 * course[0][1]


# ------------------------------------------------------------ what the alignment asks


def near(word: str, pixels: float) -> bool:
    """Whether a part of the side is that of a pixel, up to the rounding."""
    return abs(float(word) * SIDE - pixels) <= STEP * SIDE / 2 + 0.01


def inside(x: str, y: str, box: Box) -> bool:
    left, top, right, bottom = box
    most = STEP * SIDE / 2 + 0.01
    return left - most <= float(x) * SIDE <= right + most and top - most <= float(y) * SIDE <= bottom + most


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_queries_are_answered_by_the_regions(models: Path, capability: str) -> None:
    drawn = read_regions(models / "material", capability, "train")
    labels = {region.label for shown in drawn for region in shown}
    asked = queries(drawn, seed=0)
    assert [each.picture for each in asked] == list(range(len(drawn)))
    for conversation, shown in zip(asked, drawn, strict=True):
        found = [region.label for region in shown]
        counted = {}
        located = []
        for prompt, reply in conversation.turns:
            word, what = prompt.split(" ", 1)
            if word == "at":
                x, y = what[1:-1].split(", ")
                mine = [region for region in shown if region.label == reply]
                assert any(
                    any(near(x, across) and near(y, down) for across, down in region.points)
                    if region.points
                    else inside(x, y, region.box)
                    for region in mine
                )
            elif word == "where":
                (region,) = [each for each in shown if each.label == what]
                told = reply[1:-1].split(", ")
                assert all(near(part, edge) for part, edge in zip(told, region.box, strict=True))
                located.append(what)
            else:
                assert word == "count"
                counted[what] = int(reply)
                assert int(reply) == found.count(what)
        assert sorted(located) == sorted(label for label in found if found.count(label) == 1)
        absent = [label for label, number in counted.items() if number == 0]
        assert set(counted) == {*found, *absent}
        assert len(absent) == min(2, len(labels - set(found)))
        assert sum(prompt.startswith("at ") for prompt, _ in conversation.turns) >= len(shown)


# ------------------------------------------------------------ what the language model is shown


def test_the_processor_prepares_pictures_as_training_does(models: Path) -> None:
    pictures = read_pictures(models / "material", "vqa", "train")
    processor = AutoProcessor.from_pretrained(models / "base")
    prepared = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, pixel_values(pictures), atol=1e-6, rtol=0)


def test_frozen_features_are_those_of_the_model(models: Path) -> None:
    pictures = read_pictures(models / "material", "vqa", "train")
    model = AutoModelForImageTextToText.from_pretrained(models / "base", dtype=torch.float32)
    with torch.no_grad():
        seen = frozen_features(model, pictures)
        shown = model.model.multi_modal_projector(seen.float())
        expected = model.get_image_features(pixel_values=pixel_values(pictures)).pooler_output
    assert seen.shape == (len(pictures), SIZE.image_tokens, 4 * SIZE.vision_width)
    assert seen.dtype == torch.float16
    torch.testing.assert_close(shown, expected, atol=2e-3, rtol=2e-3)


# ------------------------------------------------------------ what is written


def test_a_base_has_the_tower(models: Path) -> None:
    base = load_file(models / "base" / "model.safetensors")
    tower = load_file(models / "tower" / "model.safetensors")
    kept = {name.split("vision_tower.", 1)[1]: value for name, value in base.items() if "vision_tower." in name}
    assert kept.keys() == tower.keys()
    assert all(torch.equal(value, tower[name].bfloat16()) for name, value in kept.items())
    for name in ("tower", "aligned", "base"):
        assert [step for step, _ in json.loads((models / name / "losses.json").read_text())] == [0]


@torch.no_grad()
def greedy(model: Any, encoder: Encoder, conversation: Conversation, seen: torch.Tensor, tokens: int) -> str:
    """The beginning of the reply to a conversation's first question, by the way that training takes."""
    prompt = [encoder.start, encoder.user, *encoder.image, *encoder.words(conversation.turns[0][0]), encoder.assistant]
    ids = torch.tensor([prompt])
    shown = model.model.multi_modal_projector(seen[conversation.picture].float())
    for _ in range(tokens):
        embedded = model.get_input_embeddings()(ids)
        embedded[ids == encoder.placeholder] = shown
        hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        ids = torch.cat([ids, model.lm_head(hidden[:, -1:]).argmax(-1)], 1)
    return encoder.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.slow
def test_a_saved_base_says_through_lm_eval_what_it_says_in_training(models: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(models / "base", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(models / "base")
    lively(model).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    metadata = {"split": "train", "sources": {f"{GROUP}/vqa": str(models / "material" / "vqa")}}
    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False, metadata=metadata)
    asked = MLLM(pretrained=str(tmp_path), dtype="float32", device="cpu", batch_size=4)
    name = f"{GROUP}_vqa"
    found = simple_evaluate(asked, tasks=[name], task_manager=manager, bootstrap_iters=0, limit=12)["samples"][name]
    pictures = read_pictures(models / "material", "vqa", "train")
    conversations = read_conversations(models / "material", "vqa", "train")
    seen, encoder = frozen_features(model, pictures), Encoder(processor)
    told = [
        greedy(model, encoder, Conversation(each.picture, [turn]), seen, 4)
        for each in conversations
        for turn in each.turns
    ][: len(found)]
    assert all(sample["resps"][0][0].startswith(reply) for sample, reply in zip(found, told, strict=True))
    assert len(set(told)) > 1


def test_experts_change_the_linear_layers_of_the_language_model_only(models: Path) -> None:
    base, full = (load_file(models / name / "model.safetensors") for name in ("base", "full"))
    assert base.keys() == full.keys()
    changed = {name.removesuffix(".weight") for name, value in full.items() if not torch.equal(value, base[name])}
    linear = {name.removesuffix(".weight") for name in base if LINEAR.fullmatch(name.removesuffix(".weight"))}
    assert changed == linear
    assert len(linear) == 7 * SIZE.layers
    adapter = load_file(models / "lora" / "adapter_model.safetensors")

    def layer(name: str) -> str:
        return ".".join(name.split(".")[name.split(".").index("layers") :])

    adapted = {layer(re.sub(r"\.lora_[AB]\.weight$", "", name)) for name in adapter}
    assert adapted == {layer(name) for name in linear}
    assert all(value.any() for value in adapter.values())
