"""Train the tower, the base on a mixture of the capabilities, and experts on top of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, InternVLVisionModel

from examples.common.training import DEVICE, LINEAR_LAYERS, Stage, optimise, save, with_lora
from examples.minibench.alignment import queries
from examples.minibench.learn import Lessons, frozen_features, mixed_loss, rehearsing_loss
from examples.minibench.material import CAPABILITIES
from examples.minibench.model import make_model, make_processor, make_tokenizer, make_tower
from examples.minibench.plan import Plan
from examples.minibench.tower import train_tower
from examples.minibench.turns import Encoder, asked, read_conversations, read_pictures, read_regions

_SEEN = "features.safetensors"
_QUERIES = 10  # of a conversation that are learned from in one step of the alignment


def make_trained_tower(material: Path, plan: Plan, seed: int, folder: Path) -> None:
    """Train a vision tower on what is drawn where in the training pictures of all capabilities, and write it."""
    torch.manual_seed(seed)
    tower = make_tower(plan.size).to(DEVICE)
    shares = []
    for name, parts in plan.tower_parts.items():
        shares += parts * [(read_pictures(material, name, "train"), read_regions(material, name, "train"))]
    _write_course(train_tower(tower, shares, plan.tower, seed), folder)
    tower.save_pretrained(folder)


def make_aligned(material: Path, tower: Path, plan: Plan, seed: int, folder: Path) -> None:
    """Train projector and language model by short queries, on features of a frozen tower, and write the model.

    seed: of their first weights, of the queries and of the order of what they learn.
    """
    prompts = [prompt for name in CAPABILITIES for prompt, _ in asked(material, name, "train")]
    drawn = {name: queries(read_regions(material, name, "train"), seed) for name in CAPABILITIES}
    said = [text for each in drawn.values() for conversation in each for turn in conversation.turns for text in turn]
    tokenizer = make_tokenizer([*prompts, *said])
    torch.manual_seed(seed)
    model, processor = make_model(tokenizer, plan.size).to(DEVICE), make_processor(tokenizer, plan.size)
    trained = InternVLVisionModel.from_pretrained(tower, dtype=torch.float32)
    model.model.vision_tower.load_state_dict(trained.state_dict())
    model.model.vision_tower.requires_grad_(False)
    lessons = {
        name: Lessons(frozen_features(model, read_pictures(material, name, "train")), each, _QUERIES)
        for name, each in drawn.items()
    }
    _train(model, processor, lessons, plan.alignment, f"alignment {seed}", folder)
    save(model, folder, processor)


def make_features(material: Path, aligned: Path, folder: Path) -> None:
    """Write what the tower, which does not learn any more, makes of the training pictures of all capabilities."""
    model, _ = _load(aligned)
    seen = {name: frozen_features(model, read_pictures(material, name, "train")) for name in CAPABILITIES}
    save_file(seen, folder / _SEEN)


def make_base(material: Path, features: Path, aligned: Path, plan: Plan, seed: int, folder: Path) -> None:
    """Train projector and language model to answer questions of all capabilities, of some kinds rarely."""
    torch.manual_seed(seed)
    model, processor = _load(aligned)
    model.model.vision_tower.requires_grad_(False)
    lessons = {
        name: read_lessons(material, features, name, kinds, plan.rare) for name, kinds in plan.base_kinds.items()
    }
    _train(model, processor, lessons, plan.base, f"base {seed}", folder)
    save(model, folder, processor)


def _load(folder: Path) -> tuple[Any, Any]:
    """A checkpoint in float32, ready to be trained, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    model.train()
    return model, AutoProcessor.from_pretrained(folder)


def make_expert(
    material: Path,
    features: Path,
    base: Path,
    capability: str | None,
    plan: Plan,
    stage: Stage,
    rank: int | None,
    seed: int,
    folder: Path,
) -> None:
    """Train the linear layers of a base's language model, by LoRA if there is a rank; all else stays as it is.

    An expert learns all kinds of question of its capability, and rehearses of the others what the base has learned, as
    experts that are trained on a mixture with general data do. Embeddings, norms, head and projector are frozen, so
    that full fine-tunes and adapters differ from the base in the same matrices, which every merge method merges.

    capability: None stands for all, which a mixture learns. rank: of LoRA; None for a full fine-tune. seed: of the
    adapter and of the order of what is learned.
    """
    torch.manual_seed(seed)
    model, processor = _load(base)
    model.requires_grad_(False)
    if rank is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(re.fullmatch(LINEAR_LAYERS + ".weight", name) is not None)
    label, encoder = f"expert {capability} {seed}", Encoder(processor)
    if capability is None:
        lessons = {name: read_lessons(material, features, name) for name in CAPABILITIES}
        loss = mixed_loss(model, encoder, lessons, stage.batch, random.Random(label))
    else:
        others = [name for name in plan.base_kinds if name != capability and plan.rehearsed]
        known = [_known(material, features, each, plan) for each in others]
        own = read_lessons(material, features, capability)
        loss = rehearsing_loss(model, encoder, own, known, plan.rehearsed, stage.batch, random.Random(label))
    trained = with_lora(model, rank) if rank else model
    _write_course(optimise(model.parameters(), stage, label, loss), folder)
    save(trained, folder, *([] if rank else [processor]))


def _known(material: Path, features: Path, capability: str, plan: Plan) -> Lessons:
    """What a base learns of a capability."""
    return read_lessons(material, features, capability, plan.base_kinds[capability], plan.rare)


def read_lessons(
    material: Path, features: Path, capability: str, kinds: Collection[str] | None = None, rare: float = 0.0
) -> Lessons:
    """What `read_conversations` reads of the training share, with what `make_features` has made of the pictures."""
    with safe_open(features / _SEEN, framework="pt") as file:
        return Lessons(file.get_tensor(capability), read_conversations(material, capability, "train", kinds, rare))


def _train(model: Any, processor: Any, lessons: dict[str, Lessons], stage: Stage, label: str, folder: Path) -> None:
    loss = mixed_loss(model, Encoder(processor), lessons, stage.batch, random.Random(label))
    _write_course(optimise(model.parameters(), stage, label, loss), folder)


def _write_course(course: Sequence[tuple[int, float]], folder: Path) -> None:
    """Write the course of a loss to `losses.json`, as pairs of step and loss."""
    (folder / "losses.json").write_text(json.dumps(course) + "\n")
