"""Directories that transformers loads with an adapter. In a merge config they are rewritten as `model+adapter`.

`from_pretrained` looks for an adapter_config.json where it looks for the model. An adapter beside the weights of a
model is put on that model, whatever base it names; an adapter without weights beside it is put on the base that it
names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from pydantic import BaseModel

from mergekit_mm.checkpoints.adapters.base_names import is_trained_on, same_weights
from mergekit_mm.checkpoints.adapters.opening import open_adapter
from mergekit_mm.checkpoints.checkpoint import open_checkpoint
from mergekit_mm.checkpoints.disk import read_config, read_json
from mergekit_mm.checkpoints.hub import locate
from mergekit_mm.checkpoints.meta_model import meta_model_of
from mergekit_mm.checkpoints.quantization import without_quantization
from mergekit_mm.checkpoints.weight_files import ADAPTER_CONFIG, holds_adapter, holds_model
from mergekit_mm.errors import MergeError


def as_loaded(
    model: ModelReference, options: MergeOptions, base: ModelReference | None = None
) -> tuple[ModelReference, list[str]]:
    """A model with the adapter that transformers loads with it, and a note if there is one.

    base: the merge's base model. If an adapter lies beside a copy of the base's weights, it is written as an adapter
        of the base.

    Raises:
        MergeError: an adapter is named on top of a directory that has an adapter of its own; or an adapter is named
            alone and its base cannot be found.
    """
    try:
        directory = locate(model.model, options)
    except MergeError:
        return model, []  # opening it will raise the same error
    if model.lora:
        _require_one_adapter(model, directory, options)
        return model, []
    if not (directory / ADAPTER_CONFIG).is_file():
        return model, []
    if not holds_model(directory):
        return _on_its_base(model, directory, options, base)
    if not holds_adapter(directory):
        return model, [f"{model} holds an {ADAPTER_CONFIG} but no weights of an adapter: it is taken without one."]
    if has_switched_adapter(directory):
        return model, []
    if not Path(model.model.path).expanduser().is_dir():
        # from a repository on the hub, transformers loads the adapter and the base that the adapter names
        return _on_its_base(model, directory, options, base)
    over = model.model
    if base is not None and base.model != over and _is_base_directory(base, directory, options):
        over = base.model
    note = f"{model} holds a model and an adapter: the adapter is applied, as transformers does on loading."
    if over != model.model:
        note += f" Its weights are those of {over}, so that it is one of that base."
    return model.model_copy(update={"model": over, "lora": model.model}), [note]


def has_switched_adapter(directory: Path) -> bool:
    """Whether a directory's adapter belongs to the model's class, which applies it to one medium (Granite Speech)."""
    try:
        meta_model = meta_model_of(without_quantization(read_config(directory)))
    except MergeError:
        return False  # opening it will raise the same error
    return bool(meta_model and getattr(meta_model.model.config, "has_lora_adapter", False)) and holds_adapter(directory)


def with_embedded_adapters(
    config: MergeConfiguration, models: Iterable[ModelReference], options: MergeOptions, choices: Iterable[str]
) -> tuple[MergeConfiguration, list[str]]:
    """A merge config with every model that transformers loads with an adapter written as `model+adapter`, and notes.

    choices: the top-level parameters whose values may be models.

    Raises:
        MergeError: see `as_loaded`.
    """
    found: dict[ModelReference, ModelReference] = {}
    notes: list[str] = []
    for model in models:
        base = config.base_model if model != config.base_model else None
        found[model], of_model = as_loaded(model, options, found.get(base, base) if base else None)
        notes += of_model
    if all(model == loaded for model, loaded in found.items()):
        return config, notes
    result: MergeConfiguration = _replaced(config, found)
    if result.parameters:
        spelled = {str(model): str(loaded) for model, loaded in found.items()}
        chosen = {name: value for name in choices if isinstance(value := result.parameters.get(name), str)}
        chosen = {name: spelled.get(value, value) for name, value in chosen.items()}
        result = result.model_copy(update={"parameters": {**result.parameters, **chosen}})
    return result, notes


def _replaced(value: Any, models: dict[ModelReference, ModelReference]) -> Any:
    """A part of a config, with models replaced at any depth."""
    if isinstance(value, ModelReference):
        return models.get(value, value)
    if isinstance(value, BaseModel):
        fields = {name: _replaced(getattr(value, name), models) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {key: _replaced(held, models) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(held, models) for held in value)
    return value


def _require_one_adapter(model: ModelReference, directory: Path, options: MergeOptions) -> None:
    """Refuse `model+adapter` where transformers would load the model with another adapter already."""
    assert model.lora is not None
    if not (holds_model(directory) and holds_adapter(directory)):
        return
    try:
        other = locate(model.lora, options)
    except MergeError:
        return  # opening it will raise the same error
    if other.resolve() != directory.resolve():
        raise MergeError(
            f"{model.model} holds an adapter of its own, which transformers loads with it, so {model.lora} on top of "
            f"it could mean either or both. Name a copy of {model.model} without {ADAPTER_CONFIG}."
        )


def _on_its_base(
    model: ModelReference, directory: Path, options: MergeOptions, base: ModelReference | None
) -> tuple[ModelReference, list[str]]:
    """An adapter that is named alone, on the base that it was trained on."""
    how = f"write the model it belongs to before it, as in BASE+{model}"
    named = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise MergeError(f"{model} is an adapter whose {ADAPTER_CONFIG} names no base: {how}.")
    if base is not None and _belongs_to(base, model, directory, options):
        over = base.model
    else:
        over = ModelPath(path=named)
        try:
            locate(over, options)
        except MergeError as error:
            raise MergeError(f"{model} is an adapter of {named}, which cannot be found: {how}. ({error})") from error
    note = f"{model} is an adapter: it is put on {over}, as transformers does on loading."
    return model.model_copy(update={"model": over, "lora": model.model}), [note]


def _belongs_to(base: ModelReference, model: ModelReference, directory: Path, options: MergeOptions) -> bool:
    """Whether the merge's base is the model that an adapter was trained on."""
    try:
        checkpoint = open_checkpoint(str(base.model), locate(base.model, options))
        return is_trained_on(open_adapter(str(model), directory).base, str(base.model.path), checkpoint).same
    except MergeError:
        return False  # opening them will raise the same error


def _is_base_directory(base: ModelReference, directory: Path, options: MergeOptions) -> bool:
    try:
        return same_weights(locate(base.model, options), directory)
    except MergeError:
        return False  # opening it will raise the same error
