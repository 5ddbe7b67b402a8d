"""Models inside of a model: the thinker of an omni model, the model under a head, a tower.

transformers builds large models of smaller ones, each of which is a class of its own that can be trained and saved by
itself. If a module of one checkpoint's model has the class of another checkpoint's model, the two are the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from mergekit_mm.checkpoints.checkpoint import Checkpoint, neutral_names
from mergekit_mm.checkpoints.meta_model import MetaModel
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role, classify
from mergekit_mm.checkpoints.transformers_private import on_meta_device
from mergekit_mm.errors import MergeError


@dataclass(frozen=True, eq=False)
class View:
    """A class through which a model, or a part of it, can be loaded, and its names of the model's tensors."""

    meta_model: MetaModel
    names: dict[str, str]  # name in memory of this class -> name in memory of the whole model
    description: str  # for messages


def common_part(base: Checkpoint, other: Checkpoint) -> tuple[str, str] | None:
    """The paths in two models at which they are one class, where one model is a part of the other; "" is the whole.

    None for two models of one class, for two models neither of which is a part of the other, and if the part is a
    language model: language models are matched by their layers, whatever surrounds them.

    Raises:
        MergeError: one model is in the other more than once.
    """
    if (
        base.meta_model is None
        or other.meta_model is None
        or type(base.meta_model.model) is type(other.meta_model.model)
    ):
        return None
    for whole, part in ((base, other), (other, base)):
        assert whole.meta_model is not None
        assert part.meta_model is not None
        cls = type(part.meta_model.model)
        paths = [path for path, module in _models_in(whole.meta_model) if type(module) is cls]
        if len(paths) > 1:
            raise MergeError(
                f"{part.name} is a {cls.__name__}, of which {whole.name} has {len(paths)}: {', '.join(paths)}."
            )
        if paths and not _is_language_model(whole, paths[0]):
            return (paths[0], "") if whole is base else ("", paths[0])
    return None


def are_related(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints are of one architecture, or one is a part of the other."""
    return one.model_type == other.model_type or common_part(one, other) is not None


def share_language_model(base: Checkpoint, other: Checkpoint) -> bool:
    """Whether the part that two checkpoints have in common holds a language model, and is not a tower alone."""
    if (paths := common_part(base, other)) is None:
        return True
    whole, path = (base, paths[0]) if paths[0] else (other, paths[1])
    return not _holds_no_language_model(whole, path)


def part_of(checkpoint: Checkpoint, path: str) -> Checkpoint:
    """One module as a checkpoint of its own, whose names do not begin with the module's path."""
    if not path:
        return checkpoint
    assert checkpoint.meta_model is not None
    model = checkpoint.meta_model.model.get_submodule(path)
    assert isinstance(model, PreTrainedModel)
    start = f"{path}."
    inside = {n.removeprefix(start): info for n, info in checkpoint.tensors.items() if n.startswith(start)}
    return replace(
        checkpoint,
        name=f"{checkpoint.name} ({path})",
        config={"model_type": model.config.model_type},
        meta_model=MetaModel(model),
        groups=tuple(
            replace(group, memory=tuple(name.removeprefix(start) for name in group.memory))
            for group in checkpoint.groups
            if all(name.startswith(start) for name in group.memory)
        ),
        unknown=frozenset(n.removeprefix(start) for n in checkpoint.unknown if n.startswith(start)),
        tensors={name: replace(info, name=name) for name, info in inside.items()},
    )


def parts_beyond(one: Checkpoint, other: Checkpoint) -> list[str]:
    """The modules for output that one model has, and that another model of its class lacks by its config.

    Some models can be loaded and saved without their talker and its vocoder. A model without a tower, or with fewer
    layers, is another model.
    """
    if one.meta_model is None or other.meta_model is None:
        return []
    theirs = {path for path, _ in other.meta_model.model.named_modules()}
    return [
        path
        for path, _ in one.meta_model.model.named_modules()
        if path not in theirs and path.rpartition(".")[0] in theirs and _roles_in(one, path) == {Role.OTHER}
    ]


def views(checkpoint: Checkpoint) -> Iterator[View]:
    """The classes through which a checkpoint may have been trained, the likeliest first.

    The checkpoint's own class comes first, then those of the models inside of it: models that hold the language model,
    towers, and models for output. The text class, which has a head, comes before the class of the language model, which
    has none.
    """
    if checkpoint.meta_model is None:
        return
    whole = checkpoint.meta_model
    yield View(whole, {name: name for name in whole.tensors}, type(whole.model).__name__)
    inside = sorted(_models_in(whole), key=lambda item: _distance(_roles_in(checkpoint, item[0])))
    language = next((path for path, _ in inside if _is_language_model(checkpoint, path)), None)
    for path, model in inside:
        if path == language and (text := _text_class(checkpoint)) is not None:
            yield text
        meta_model = MetaModel(model)
        names = {name: f"{path}.{name}" for name in meta_model.tensors}
        yield View(meta_model, names, f"{type(model).__name__}, its {path}")


def _text_class(checkpoint: Checkpoint) -> View | None:
    """The text-only class of a multimodal model, by which transformers loads the language model alone."""
    assert checkpoint.meta_model is not None
    whole = checkpoint.meta_model.model
    text = whole.config.get_text_config(decoder=True)
    # the text config belongs to the class; Mllama's class belongs to the config around the text config
    found = (MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) for config in (text, whole.config))
    cls = next((cls for cls in found if cls not in (None, type(whole))), None)
    if cls is None:
        return None
    try:
        model = on_meta_device(cls, deepcopy(text))
    except Exception:  # some text configs do not suffice for a model of their own
        return None
    meta_model = MetaModel(model)
    theirs, ours = (neutral_names(classify(each)) for each in (meta_model, checkpoint.meta_model))
    names = {name: ours[neutral] for neutral, name in theirs.items() if neutral in ours}
    return View(meta_model, names, f"{cls.__name__}, its language model")


def _models_in(meta_model: MetaModel) -> list[tuple[str, PreTrainedModel]]:
    return [(n, m) for n, m in meta_model.model.named_modules() if n and isinstance(m, PreTrainedModel)]


def _roles_in(checkpoint: Checkpoint, path: str) -> set[Role]:
    return {info.role for name, info in checkpoint.tensors.items() if name.startswith(f"{path}.")}


def _distance(roles: set[Role]) -> int:
    return 2 if roles <= {Role.OTHER} else 1 if LANGUAGE_ROLES.isdisjoint(roles) else 0


def _is_language_model(checkpoint: Checkpoint, path: str) -> bool:
    return _roles_in(checkpoint, path) <= LANGUAGE_ROLES


def _holds_no_language_model(checkpoint: Checkpoint, path: str) -> bool:
    return LANGUAGE_ROLES.isdisjoint(_roles_in(checkpoint, path))
