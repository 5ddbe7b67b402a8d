"""Train the base on a mixture of the capabilities, and experts on top of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.common.training import Stage, optimise, save, with_lora
from examples.minibench.learn import Lessons, frozen_features, mixed_loss
from examples.minibench.material import CAPABILITIES
from examples.minibench.model import make_model, make_processor, make_tokenizer
from examples.minibench.plan import Plan
from examples.minibench.turns import Encoder, read


def make_base(material: Path, plan: Plan, seed: int, folder: Path) -> None:
    """Train tower, projector and decoder together on a share of the training pictures of all capabilities."""
    lessons = {name: Lessons(*read(material, name, "train")) for name in CAPABILITIES}
    prompts = [prompt for each in lessons.values() for said in each.conversations for prompt, _ in said.turns]
    tokenizer = make_tokenizer(prompts)
    torch.manual_seed(seed)
    model, processor = make_model(tokenizer, plan.size), make_processor(tokenizer, plan.size)
    shared = {
        name: Lessons(each.seen, each.conversations[: round(plan.base_share * len(each.conversations))])
        for name, each in lessons.items()
    }
    _train(model, processor, shared, plan.base, f"base {seed}", folder)
    save(model, folder, processor)


def make_expert(
    material: Path,
    base: Path,
    capabilities: Sequence[str],
    stage: Stage,
    rank: int | None,
    seed: int,
    folder: Path,
) -> None:
    """Train the decoder of a base further, by LoRA if there is a rank; tower and projector stay as they are."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(base)
    model.train()
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    lessons = {name: frozen_lessons(material, base, name) for name in capabilities}
    trained = with_lora(model, rank) if rank else model
    _train(model, processor, lessons, stage, f"expert {' '.join(capabilities)} {seed}", folder)
    save(trained, folder, *([] if rank else [processor]))


@lru_cache(maxsize=len(CAPABILITIES))
def frozen_lessons(material: Path, base: Path, capability: str) -> Lessons:
    """The training share of a capability, with the features of a base's tower in the place of the pictures."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    pictures, conversations = read(material, capability, "train")
    return Lessons(frozen_features(model, pictures), conversations)


def _train(model: Any, processor: Any, lessons: dict[str, Lessons], stage: Stage, label: str, folder: Path) -> None:
    """Minimise the answers' loss, and write its course to `losses.json` as pairs of step and loss."""
    loss = mixed_loss(model, Encoder(processor), lessons, stage.batch, random.Random(label))
    losses = optimise(model.parameters(), stage, label, loss)
    (folder / "losses.json").write_text(json.dumps(losses) + "\n")
