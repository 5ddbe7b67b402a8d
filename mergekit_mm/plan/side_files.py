"""The side files of an output: which are copied from where, which are written, and what the user should know."""

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
from mergekit_mm.plan.inputs import Inputs, OmniInputs, as_written
from mergekit_mm.plan.parameters import SIDE_FILES


@dataclass(frozen=True)
class SideFiles:
    """What an output has beside its weights and config, by path below its directory."""

    copies: Mapping[str, Path]  # byte for byte
    texts: Mapping[str, str] = field(default_factory=dict)  # contents of files that are new or replace a copy
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()  # notes on what a merge damages
    source_name: str = ""  # the model whose files these are, for messages
    sources: Sequence[Path] = ()  # the directories of that model, and of an adapter on it

    @property
    def nbytes(self) -> int:
        """The size of what is copied."""
        return sum(path.stat().st_size for path in self.copies.values())


def plan_side_files(inputs: Inputs, config: MergeConfiguration, options: MergeOptions) -> SideFiles:
    """Settle the side files of an output.

    Raises:
        MergeError: the config takes them from a model that has none, or one of them is damaged.
        OSError: a directory or file cannot be read.
    """
    files, inventories = _files_of_inputs(inputs)
    if isinstance(inputs, OmniInputs):
        return _of_omni_model(inputs, files)
    wanted = _source_of(config)
    source = _directories(wanted, inputs, options)
    source_name = as_written(inputs.base) if wanted == "base" else wanted
    with_tokenizer = options.copy_tokenizer
    base = files[inputs.base]
    is_base = [path.resolve() for path in source] == [inputs.base_checkpoint.directory.resolve()]
    taken = inventories[inputs.base] if is_base else _overlaid(source, inputs)
    chosen = base if is_base else ModelFiles(source_name, base.model_type, _config(source), taken.files)
    copies = {name: path for name, path in taken.files.items() if with_tokenizer or not is_of_tokenizer(name)}
    alike = [model for model in files.values() if model.model_type == base.model_type]
    has_tokenizer_section = bool(config.tokenizer or config.tokenizer_source)
    tables = TokenTables()
    is_native = inputs.base_checkpoint.meta_model is not None
    completion = Completion(chosen.name, base, alike, is_native, inputs.base_checkpoint.is_multimodal, copies)
    completion.complete(with_tokenizer and not has_tokenizer_section, tables)
    output, notes = completion.output(), completion.notes
    experts = [model for model in files.values() if model is not base]
    texts: dict[str, str] = {}
    if with_tokenizer and not config.chat_template:
        _adopt_template(output, [model for model in experts if model in alike], texts, notes)
    owner = completion.tokenizer_owner or _tokenizer_owner(config, files) or chosen
    if owner is not base and with_tokenizer:
        output = _stopping_as(owner, output, base, texts, notes)
    compared = tables if with_tokenizer and not has_tokenizer_section else None
    others = [model for model in experts if model.name != chosen.name]
    found = compare(output, others, chosen.name, compared, chooses=is_base)
    notes += [*found.notes, *_about_folders(chosen.name, taken)]
    if broken := sorted(output.damaged):
        raise MergeError(f"{some(map(str, broken))}: damaged, and it would be copied into the output. Repair it first.")
    notes += _damaged([*files.values(), chosen])
    return SideFiles(copies, texts, notes, found.warnings, source_name, source)


def _source_of(config: MergeConfiguration) -> str:
    """The model whose tokenizer and processor files the output gets, as the config has it: `base`, or a model."""
    wanted = (config.parameters or {}).get(SIDE_FILES, "base")
    if not isinstance(wanted, str) or not wanted.strip():
        raise MergeError(f"parameter {SIDE_FILES}: {wanted!r} is not a model; write `base` or a model's path.")
    return wanted


def _directories(wanted: str, inputs: Inputs, options: MergeOptions) -> list[Path]:
    """The directories of that model, and of an adapter on it."""
    if wanted == "base":
        return [inputs.base_checkpoint.directory]
    with refused_by("mergekit.common", about=f"parameter {SIDE_FILES}: "):
        model = ModelReference.parse(wanted)
    found = [locate(model.model, options), *([locate(model.lora, options)] if model.lora else [])]
    if not any(is_of_model(path.name) for directory in found for path in directory.iterdir()):
        raise MergeError(
            f"parameter {SIDE_FILES}: {wanted} holds no files of a model, neither tokenizer nor processor."
        )
    return found


def _overlaid(source: Sequence[Path], inputs: Inputs) -> Inventory:
    """The files of a model with those of an adapter in their place."""
    found = [take_inventory(directory, inputs=inputs.directories) for directory in source]
    files = {name: path for each in found for name, path in each.files.items()}
    return Inventory(files, found[0].uncopied)


def _config(source: Sequence[Path]) -> Mapping[str, Any]:
    file = source[0] / "config.json"
    return read_json(file) if file.is_file() else {}


def _files_of_inputs(
    inputs: Inputs,
) -> tuple[dict[ModelReference, ModelFiles], dict[ModelReference, Inventory]]:
    """The side files of every input, and what was found in the directory of its model."""
    files: dict[ModelReference, ModelFiles] = {}
    inventories: dict[ModelReference, Inventory] = {}
    for model, checkpoint in inputs.checkpoints.items():
        weights = {tensor.file for tensor in checkpoint.disk.values()}
        others = [path for path in inputs.directories if path.resolve() != checkpoint.directory.resolve()]
        inventories[model] = take_inventory(checkpoint.directory, weights, others)
        held = dict(inventories[model].files)
        if model in inputs.adaptations:
            held |= take_inventory(inputs.adaptations[model].adapter.directory).files
        files[model] = ModelFiles(as_written(model), checkpoint.model_type, checkpoint.config, held)
    return files, inventories


def _adopt_template(output: ModelFiles, experts: Sequence[ModelFiles], texts: dict[str, str], notes: list[str]) -> None:
    """Where the output has no chat template but all experts agree on one, take theirs."""
    if chat_template(output) is not None or not experts:
        return
    templates = {chat_template(expert) for expert in experts}
    template = templates.pop()
    if not templates and template is not None:
        texts["chat_template.jinja"] = template
        whose = f"the one that all {len(experts)} experts share" if len(experts) > 1 else f"that of {experts[0].name}"
        notes.append(f"{output.name} has no chat template; {whose} was taken.")
    elif templates - {None} or template is not None:
        notes.append(
            f"{output.name} has no chat template, and the experts do not share one, so the output will have none: "
            "`chat_template:` or the parameter processor_source gives it one."
        )


def _tokenizer_owner(config: MergeConfiguration, files: Mapping[ModelReference, ModelFiles]) -> ModelFiles | None:
    """The input that the config's tokenizer section takes the tokenizer from, if it names one."""
    source = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    return next((found for model, found in files.items() if str(source) in (str(model), found.name)), None)


def _stopping_as(
    owner: ModelFiles, output: ModelFiles, base: ModelFiles, texts: dict[str, str], notes: list[str]
) -> ModelFiles:
    """The output with the stop tokens of the model whose tokenizer it has."""
    theirs = stop_tokens(owner)
    if theirs is None or theirs == stop_tokens(output):
        return output
    ids: int | list[int] = theirs[0] if len(theirs) == 1 else list(theirs)
    held = output.json(GENERATION_CONFIG) or base.json(GENERATION_CONFIG)
    texts[GENERATION_CONFIG] = json.dumps({**held, "eos_token_id": ids}, indent=2) + "\n"
    notes.append(f"The output stops at eos_token_id {ids} as {owner.name}, whose tokenizer it has.")
    read = {GENERATION_CONFIG: {**held, "eos_token_id": ids}}
    return ModelFiles(output.name, output.model_type, output.config, output.files, _read=read)


def _about_folders(name: str, taken: Inventory) -> list[str]:
    """What of a model's directory is copied that may be large."""
    sizes = ", ".join(f"{folder}/ ({size_of(size)})" for folder, size in taken.folders.items())
    return [f"Folders of {name} that are copied with its files: {sizes}."] if sizes else []


def _damaged(models: Sequence[ModelFiles]) -> list[str]:
    found = dict.fromkeys(str(path) for model in models for path in sorted(model.damaged))
    return [f"Damaged, so not compared: {some(found)}."] if found else []


def _of_omni_model(inputs: OmniInputs, files: Mapping[ModelReference, ModelFiles]) -> SideFiles:
    """An omni model has tokenizer, processors and code of its own; of its host's files only the generation config."""
    host = files[inputs.base]
    copies = {name: host.files[name] for name in (GENERATION_CONFIG,) if name in host.files}
    output = ModelFiles(host.name, "", host.config, copies)  # no input is of its architecture
    notes = compare(output, [m for m in files.values() if m is not host], host.name, None, chooses=False).notes
    return SideFiles(copies, {}, notes, source_name=host.name, sources=[inputs.base_checkpoint.directory])
