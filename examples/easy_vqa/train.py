"""Train the models of this example from scratch: a base, three fully fine-tuned experts and three LoRA experts.

    python -m examples.easy_vqa.train --out out/easy_vqa_models        # all seven, 10 to 30 minutes of CPU
    python -m examples.easy_vqa.train --out out/quick --quick          # a smaller model, about a minute

Stages: (1) the CLIP tower learns to name the colour and the shape it sees; (2) projector and decoder learn to answer a
share of the questions, from which some colours, a shape and most negations are withheld: this is the base; (3) each
expert continues from the base as saved, in bfloat16, on the questions of one type. The tower is frozen after stage 1,
the projector after stage 2. The loss is on the answer and the end token only. A model found in --out is not made again.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.common.training import Stage, missing_models, optimise, save, with_lora
from examples.easy_vqa.data import (
    COLORS,
    SHAPES,
    TYPES,
    Draw,
    Question,
    base_share,
    by_type,
    drawer,
    image,
    questions,
)
from examples.easy_vqa.model import Size, make_model, make_processor, prompt_ids
from examples.easy_vqa.scores import score, table

MODELS = ("base", *(f"{kind}_{part}" for kind in ("expert", "lora") for part in TYPES))
PROCESSOR_FILES = ("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
COLOR_LOSS = 0.2  # colours are so easy that the tower otherwise learns shapes three times more slowly
MIXTURE = {"color": 0.1, "shape": 0.1, "yesno": 0.8}  # yes/no takes longest to learn by far


@dataclass(frozen=True)
class Plan:
    """All settings that the result depends on, besides the seed. They were chosen on validation questions."""

    tower: Stage
    base: Stage
    share: float  # the part of the questions that the base learns from
    expert: Stage
    lora: Stage
    yesno_factor: int  # the yes/no experts train that many times longer
    rank: int
    size: Size


FULL = Plan(
    tower=Stage(700, 128, 2e-3),
    base=Stage(1200, 48, 1e-3),
    share=0.2,
    expert=Stage(100, 48, 2e-4),
    lora=Stage(150, 48, 1e-3),
    yesno_factor=4,
    rank=8,
    size=Size(),
)
QUICK = replace(
    FULL,
    size=Size(width=64, layers=2, mlp=128),
    tower=Stage(250, 128, 2e-3),
    base=Stage(150, 32, 2e-3),
    expert=Stage(60, 32, 1e-3),
    lora=Stage(60, 32, 4e-3),
    yesno_factor=1,
)


def load(directory: Path) -> tuple[Any, Any]:
    """A checkpoint in float32 and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(directory)


def training_pixels(processor: Any) -> torch.Tensor:
    """All training images that are not validation images, as the processor prepares them."""
    last = max(row.image for row in questions("train"))
    return processor.image_processor([image("train", n) for n in range(last + 1)], return_tensors="pt")["pixel_values"]


class Shifter:
    """Move the one shape of an image to a random place and mirror every other image: a new view, the same answers."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels
        corners = torch.stack([pixels[:, :, y, x] for y in (0, -1) for x in (0, -1)], 1)
        background = corners.median(1).values  # the shape covers at most one corner
        self.boxes = [self._box(mask) for mask in (pixels != background[:, :, None, None]).any(1)]

    @staticmethod
    def _box(mask: torch.Tensor) -> tuple[int, int, int, int]:
        rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
        return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])

    def __call__(self, numbers: Sequence[int], rng: random.Random) -> torch.Tensor:
        views = self.pixels[list(numbers)]
        for view, number in zip(views, numbers, strict=True):
            top, bottom, left, right = self.boxes[number]
            last = view.shape[-1] - 1
            view.copy_(view.roll((rng.randint(-top, last - bottom), rng.randint(-left, last - right)), (1, 2)))
            if rng.random() < 0.5:
                view.copy_(view.flip(-1))
        return views


def train_tower(tower: Any, pixels: torch.Tensor, stage: Stage, seed: int) -> None:
    """Stage 1: name colour and shape through a linear head, later thrown away; labels are the training answers."""
    rng = random.Random(f"{seed} tower")
    labels = {names: torch.full((len(pixels),), -100) for names in (COLORS, SHAPES)}
    for row in questions("train"):
        for names, label in labels.items():
            if row.answer in names:
                label[row.image] = names.index(row.answer)
    head = torch.nn.Linear(tower.config.hidden_size, len(COLORS) + len(SHAPES))
    shift = Shifter(pixels)

    def loss() -> torch.Tensor:
        numbers = rng.choices(range(len(pixels)), k=stage.batch)
        seen = tower(pixel_values=shift(numbers, rng)).last_hidden_state[:, 1:].mean(1)
        color, shape = head(seen).split([len(COLORS), len(SHAPES)], -1)
        by_color, by_shape = labels[COLORS][numbers], labels[SHAPES][numbers]
        return COLOR_LOSS * cross_entropy(color, by_color) + cross_entropy(shape, by_shape)

    optimise([*tower.parameters(), *head.parameters()], stage, "vision tower", loss)


@torch.no_grad()
def tower_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The frozen tower's features (images, tokens, width), computed once as the tower no longer changes."""
    tower = model.model.vision_tower
    return torch.cat([tower(pixel_values=part).last_hidden_state[:, 1:] for part in pixels.split(256)])


class Answering:
    """The answer loss of a batch of drawn questions, given the frozen tower's features."""

    def __init__(self, model: Any, processor: Any, features: torch.Tensor) -> None:
        self.model, self.features = model, features
        self.prompts = prompt_ids(processor, sorted({row.text for row in questions("train")}))
        self.image, self.pad = processor.image_token_id, processor.tokenizer.pad_token_id
        self.end, self.token = processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids

    def __call__(self, rows: Sequence[Question]) -> torch.Tensor:
        told = torch.tensor([[self.token(row.answer)] for row in rows])
        longest = max(len(self.prompts[row.text]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        for line, row in zip(ids, rows, strict=True):
            line[longest - len(self.prompts[row.text]) :] = self.prompts[row.text]
        ids = torch.cat([ids, told], 1)
        embedded = self.model.get_input_embeddings()(ids)
        seen = self.model.model.multi_modal_projector(self.features[[row.image for row in rows]])
        embedded = embedded.masked_scatter((ids == self.image)[..., None].expand_as(embedded), seen)
        logits = self.model(inputs_embeds=embedded, attention_mask=(ids != self.pad).long(), logits_to_keep=2).logits
        targets = torch.cat([told, torch.full_like(told, self.end)], 1)
        return cross_entropy(logits.flatten(0, 1), targets.flatten())


def train_answers(answering: Answering, draws: dict[str, Draw], stage: Stage, seed: str) -> None:
    """Stages 2 and 3: learn to answer questions drawn from `draws`, types in the proportions of MIXTURE."""
    rng = random.Random(seed)
    weights = [MIXTURE[kind] for kind in draws]

    def loss() -> torch.Tensor:
        return answering([draws[kind](rng) for kind in rng.choices(list(draws), weights, k=stage.batch)])

    optimise(answering.model.parameters(), stage, seed.split(maxsplit=1)[1], loss)


def make_base(plan: Plan, seed: int, directory: Path) -> None:
    """Stages 1 and 2."""
    torch.manual_seed(seed)
    rows = questions("train")
    processor = make_processor(rows, plan.size)
    model = make_model(processor, plan.size)
    pixels = training_pixels(processor)
    train_tower(model.model.vision_tower, pixels, plan.tower, seed)
    model.model.vision_tower.requires_grad_(False)
    answering = Answering(model, processor, tower_features(model, pixels))
    share = base_share(rows, plan.share, seed)
    draws = {kind: drawer(kind, members) for kind, members in share.items()}
    train_answers(answering, draws, plan.base, f"{seed} base")
    save(model, directory, processor)


def make_expert(plan: Plan, seed: int, directory: Path, features: torch.Tensor) -> None:
    """Stage 3: the expert its directory names (full `expert_<type>`, adapter `lora_<type>`) from `base/` beside it."""
    way, kind = directory.name.split("_")
    stage = plan.expert if way == "expert" else plan.lora
    stage = replace(stage, steps=stage.steps * (plan.yesno_factor if kind == "yesno" else 1))
    torch.manual_seed(seed)
    base = directory.parent / "base"
    model, processor = load(base)
    model.train()
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    trained = with_lora(model, plan.rank) if way == "lora" else model
    draws = {kind: drawer(kind, by_type(questions("train"))[kind])}
    train_answers(Answering(model, processor, features), draws, stage, f"{seed} {directory.name}")
    save(trained, directory)
    if way == "expert":
        for name in PROCESSOR_FILES:
            shutil.copyfile(base / name, directory / name)


def train(out: Path, names: Sequence[str], quick: bool, seed: int) -> None:
    """Make the named models in `out`, skipping those that exist."""
    plan = QUICK if quick else FULL
    features: torch.Tensor | None = None
    for name in missing_models(out, [name for name in MODELS if name == "base" or name in names]):
        if name == "base":
            make_base(plan, seed, out / name)
        else:
            if features is None:
                model, processor = load(out / "base")
                features = tower_features(model, training_pixels(processor))
            make_expert(plan, seed, out / name, features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the models")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="make these (and the base) only")
    parser.add_argument("--quick", action="store_true", help="a smaller model trained for about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="questions for the final accuracies"
    )
    parser.add_argument("--limit", type=int, default=3000, help="score at most so many questions")
    arguments = parser.parse_args()
    train(arguments.out, arguments.only, arguments.quick, arguments.seed)
    made = [name for name in MODELS if name == "base" or name in arguments.only]
    results = {name: score(arguments.out / name, arguments.split, arguments.limit) for name in made}
    print(f"\n{arguments.split} questions, at most {arguments.limit} of them, 95 % intervals")
    print(table(results))


if __name__ == "__main__":
    main()
