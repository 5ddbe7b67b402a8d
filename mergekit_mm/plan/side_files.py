"""The side files of an output: the files that are copied, the files that are written, and notes on both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.disk import read_json
from mergekit_mm.checkpoints.hub import locate
from mergekit_mm.checkpoints.listing import size_of, some
from mergekit_mm.checkpoints.side_files.comparison import compare
from mergekit_mm.checkpoints.side_files.generation import GENERATION_CONFIG, stop_tokens
from mergekit_mm.checkpoints.side_files.inventory import Inventory, take_inventory
from mergekit_mm.checkpoints.side_files.model_files import ModelFiles, chat_template, is_of_model, is_of_tokenizer
from mergekit_mm.checkpoints.side_files.needs import Completion
from mergekit_mm.checkpoints.side_files.tokens import TokenTables
from mergekit_mm.errors import MergeError, refused_by
from mergekit_mm.plan.inputs import Inputs, OmniInputs, name_in_config
from mergekit_mm.plan.parameters import SIDE_FILES


@dataclass(frozen=True)
class SideFiles:
    """The files of an output beside its weights and config, by their paths below its directory."""

    copies: Mapping[str, Path]  # path in the output -> the file that is copied byte for byte
    texts: Mapping[str, str] = field(default_factory=dict)  # contents of files that are new or replace a copy
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()  # notes on capabilities that the merge damages
    source_name: str = ""  # in messages, the model from which the files are copied
    sources: Sequence[Path] = ()  # the directories of that model, and of an adapter on it

    @property
    def nbytes(self) -> int:
        """The size of the copied files, in bytes."""
        return sum(path.stat().st_size for path in self.copies.values())


def plan_side_files(inputs: Inputs, config: MergeConfiguration, options: MergeOptions) -> SideFiles:
    """Decide on the side files of an output.

    Raises:
        MergeError: the config takes them from a model that has none, or one of them is damaged.
        OSError: a directory or file cannot be read.
    """
    files, inventories = _files_of_inputs(inputs)
    if isinstance(inputs, OmniInputs):
        return _of_omni_model(inputs, files)
    source = _source_of(config)
    directories = _source_directories(source, inputs, options)
    source_name = name_in_config(inputs.base) if source == "base" else source
    with_tokenizer = options.copy_tokenizer
    base = files[inputs.base]
    is_base = [path.resolve() for path in directories] == [inputs.base_checkpoint.directory.resolve()]
    inventory = inventories[inputs.base] if is_base else _with_files_of_adapter(directories, inputs)
    chosen = base if is_base else ModelFiles(source_name, base.model_type, _config(directories), inventory.files)
    copies = {name: path for name, path in inventory.files.items() if with_tokenizer or not is_of_tokenizer(name)}
    same_type = [model for model in files.values() if model.model_type == base.model_type]
    has_tokenizer_section = bool(config.tokenizer or config.tokenizer_source)
    tables = TokenTables()
    is_native = inputs.base_checkpoint.meta_model is not None
    completion = Completion(chosen.name, base, same_type, is_native, inputs.base_checkpoint.is_multimodal, copies)
    completion.complete(with_tokenizer and not has_tokenizer_section, tables)
    output, notes = completion.output(), completion.notes
    experts = [model for model in files.values() if model is not base]
    texts: dict[str, str] = {}
    if with_tokenizer and not config.chat_template:
        _adopt_template(output, [model for model in experts if model in same_type], texts, notes)
    tokenizer_owner = completion.tokenizer_owner or _tokenizer_owner(config, files) or chosen
    if tokenizer_owner is not base and with_tokenizer:
        output = _with_stop_tokens_of(tokenizer_owner, output, base, texts, notes)
    compared_tables = tables if with_tokenizer and not has_tokenizer_section else None
    others = [model for model in experts if model.name != chosen.name]
    comparison = compare(output, others, chosen.name, compared_tables, chooses=is_base)
    notes += [*comparison.notes, *_copied_folders(chosen.name, inventory)]
    if broken := sorted(output.damaged):
        raise MergeError(f"{some(map(str, broken))}: damaged, and it would be copied into the output. Repair it first.")
    notes += _damaged_files([*files.values(), chosen])
    return SideFiles(copies, texts, notes, comparison.warnings, source_name, directories)


def _source_of(config: MergeConfiguration) -> str:
    """The model that gives tokenizer and processor files to the output, as in the config: `base`, or a model's name."""
    source = (config.parameters or {}).get(SIDE_FILES, "base")
    if not isinstance(source, str) or not source.strip():
        raise MergeError(f"parameter {SIDE_FILES}: {source!r} is not a model; write `base` or a model's path.")
    return source


def _source_directories(source: str, inputs: Inputs, options: MergeOptions) -> list[Path]:
    """The directory of the model that `_source_of` gives, and that of an adapter on it."""
    if source == "base":
        return [inputs.base_checkpoint.directory]
    with refused_by("mergekit.common", about=f"parameter {SIDE_FILES}: "):
        model = ModelReference.parse(source)
    directories = [locate(model.model, options), *([locate(model.lora, options)] if model.lora else [])]
    if not any(is_of_model(path.name) for directory in directories for path in directory.iterdir()):
        raise MergeError(
            f"parameter {SIDE_FILES}: {source} holds no files of a model, neither tokenizer nor processor."
        )
    return directories


def _with_files_of_adapter(directories: Sequence[Path], inputs: Inputs) -> Inventory:
    """The files of a model; of files that an adapter on it has too, the adapter's."""
    inventories = [take_inventory(directory, inputs=inputs.directories) for directory in directories]
    files = {name: path for inventory in inventories for name, path in inventory.files.items()}
    return Inventory(files, inventories[0].uncopied)


def _config(directories: Sequence[Path]) -> Mapping[str, Any]:
    """The config.json of the model in the first directory; empty if it has none."""
    file = directories[0] / "config.json"
    return read_json(file) if file.is_file() else {}


def _files_of_inputs(
    inputs: Inputs,
) -> tuple[dict[ModelReference, ModelFiles], dict[ModelReference, Inventory]]:
    """The side files of every input, with those of its adapter, and the inventory of its model's directory."""
    files: dict[ModelReference, ModelFiles] = {}
    inventories: dict[ModelReference, Inventory] = {}
    for model, checkpoint in inputs.checkpoints.items():
        weights = {tensor.file for tensor in checkpoint.disk.values()}
        others = [path for path in inputs.directories if path.resolve() != checkpoint.directory.resolve()]
        inventories[model] = take_inventory(checkpoint.directory, weights, others)
        own = dict(inventories[model].files)
        if model in inputs.adaptations:
            own |= take_inventory(inputs.adaptations[model].adapter.directory).files
        files[model] = ModelFiles(name_in_config(model), checkpoint.model_type, checkpoint.config, own)
    return files, inventories


def _adopt_template(output: ModelFiles, experts: Sequence[ModelFiles], texts: dict[str, str], notes: list[str]) -> None:
    """Add the experts' chat template to `texts`, if they agree on one and the output has none; and a note on it."""
    if chat_template(output) is not None or not experts:
        return
    templates = {chat_template(expert) for expert in experts}
    template = templates.pop()
    if not templates and template is not None:
        texts["chat_template.jinja"] = template
        adopted = f"the one that all {len(experts)} experts share" if len(experts) > 1 else f"that of {experts[0].name}"
        notes.append(f"{output.name} has no chat template; {adopted} was taken.")
    elif templates - {None} or template is not None:
        notes.append(
            f"{output.name} has no chat template, and the experts do not share one, so the output will have none: "
            "`chat_template:` or the parameter processor_source gives it one."
        )


def _tokenizer_owner(config: MergeConfiguration, files: Mapping[ModelReference, ModelFiles]) -> ModelFiles | None:
    """The input from which the config's tokenizer section takes the tokenizer; None if that names no input."""
    source = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    return next((own for model, own in files.items() if str(source) in (str(model), own.name)), None)


def _with_stop_tokens_of(
    owner: ModelFiles, output: ModelFiles, base: ModelFiles, texts: dict[str, str], notes: list[str]
) -> ModelFiles:
    """The output's files with the stop tokens of its tokenizer's owner; the new file goes into `texts`, with a note."""
    stops = stop_tokens(owner)
    if stops is None or stops == stop_tokens(output):
        return output
    ids: int | list[int] = stops[0] if len(stops) == 1 else list(stops)
    generation = {**(output.json(GENERATION_CONFIG) or base.json(GENERATION_CONFIG)), "eos_token_id": ids}
    texts[GENERATION_CONFIG] = json.dumps(generation, indent=2) + "\n"
    notes.append(f"The output stops at eos_token_id {ids} as {owner.name}, whose tokenizer it has.")
    read = {GENERATION_CONFIG: generation}
    return ModelFiles(output.name, output.model_type, output.config, output.files, _read=read)


def _copied_folders(name: str, inventory: Inventory) -> list[str]:
    """A note on the folders of a model's directory that are copied, as they may be large."""
    sizes = ", ".join(f"{folder}/ ({size_of(size)})" for folder, size in inventory.folders.items())
    return [f"Folders of {name} that are copied with its files: {sizes}."] if sizes else []


def _damaged_files(models: Sequence[ModelFiles]) -> list[str]:
    """A note on the files that could not be read."""
    damaged = dict.fromkeys(str(path) for model in models for path in sorted(model.damaged))
    return [f"Damaged, so not compared: {some(damaged)}."] if damaged else []


def _of_omni_model(inputs: OmniInputs, files: Mapping[ModelReference, ModelFiles]) -> SideFiles:
    """The side files of an omni model: its host's generation config. Tokenizer, processors and code are its own."""
    host = files[inputs.base]
    copies = {name: host.files[name] for name in (GENERATION_CONFIG,) if name in host.files}
    output = ModelFiles(host.name, "", host.config, copies)  # No input is of the architecture of an omni model.
    notes = compare(output, [m for m in files.values() if m is not host], host.name, None, chooses=False).notes
    return SideFiles(copies, {}, notes, source_name=host.name, sources=[inputs.base_checkpoint.directory])
