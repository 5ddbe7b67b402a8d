"""One multimodal merge, from its config to a finished and checked directory."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.merge import _set_chat_template
from mergekit.options import MergeOptions
from mergekit.tokenizer import TokenizerInfo
from transformers import PreTrainedTokenizerBase

from mergekit_mm.checkpoints.disk import DiskTensor, read_headers, read_json
from mergekit_mm.checkpoints.hub import locate
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.checkpoints.side_files.model_files import is_of_model
from mergekit_mm.checkpoints.tokenizer import load_tokenizer
from mergekit_mm.checkpoints.weight_files import ADAPTER_CONFIG
from mergekit_mm.errors import MergeError, refused_by, system_errors
from mergekit_mm.output.card import hash_inputs, model_card
from mergekit_mm.output.config_json import write_config
from mergekit_mm.output.directory import check_output, check_room, staged
from mergekit_mm.output.omni import finish_omni
from mergekit_mm.output.side_files import drop_chat_template, linked_tokenizer, write_side_files
from mergekit_mm.output.verify import planned_tensors, require_as_planned, verified_config, verified_omni
from mergekit_mm.plan.inputs import as_written
from mergekit_mm.plan.parameters import SIDE_FILES
from mergekit_mm.plan.plan import Plan, plan_merge
from mergekit_mm.plan.side_files import SideFiles, plan_side_files
from mergekit_mm.tasks.executors import executor_for
from mergekit_mm.tasks.tokenizer import BuildVocabulary, require_token_rows, tokenizer_directory

LOG = logging.getLogger(__name__)


def run_multimodal_merge(
    config: MergeConfiguration, out_path: str, options: MergeOptions, config_source: str | None
) -> None:
    """Plan, merge, finish and check one multimodal merge; `out_path` appears only if all of that succeeds.

    Raises:
        MergeError: the config or an input is not fit to be merged, or the system does not let files be read or written.
    """
    _run(config, {None: Path(out_path)}, options, config_source or config.to_yaml())


def run_sweep(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    scales: Sequence[float],
    config_source: str,
) -> list[Path]:
    """One merge at several strengths: `out_path/scaling_<s>` is base + s * (merged - base), solved once for all.

    Raises:
        MergeError: as for one merge, or the config has no base model to scale from.
    """
    if not config.base_model:
        raise MergeError("A sweep scales what a merge changes of its base: add `base_model: <model>` to the config.")
    outputs: dict[float | None, Path] = {s: Path(out_path) / f"scaling_{s:.12g}" for s in scales}
    _run(config, outputs, options, config_source)
    return list(outputs.values())


def _run(
    config: MergeConfiguration, outputs: Mapping[float | None, Path], options: MergeOptions, config_source: str
) -> None:
    """Merge to every output: scale of the merged delta (None: as it is) -> directory."""
    require_device(options)
    if options.random_seed is not None:
        transformers.trainer_utils.set_seed(options.random_seed)
    with (
        system_errors(next(iter(outputs.values()))),
        enough_memory(options.device),
        plan_merge(config, options, None not in outputs, config_source) as plan,
        ExitStack() as directories,
    ):
        source = _side_files_source(plan, options)
        tokenizer = config.tokenizer.source if config.tokenizer else config.tokenizer_source
        for out in outputs.values():
            check_output(out, [*plan.inputs.directories, *source, *tokenizer_directory(tokenizer)])
        side_files = _side_files(plan, source, options)
        templated = _templated(plan, side_files, options)
        staging = {scale: directories.enter_context(staged(out)) for scale, out in outputs.items()}
        targets = [t for scale, path in staging.items() for t in plan.planner.plan_to_disk(str(path), scale)]
        _verify_planned(plan, targets, options)
        not_used = plan.not_used(side_files.copies)
        needed = plan.output_bytes + side_files.nbytes
        check_room(next(iter(staging.values())), needed * len(outputs))
        if not options.quiet:
            click.echo(f"{plan.report()}\n{not_used}", err=True)
        built = _execute(list(dict.fromkeys(targets)), options)
        for scale, path in staging.items():
            _finish(plan, path, side_files, built, templated, options)
            _carry_own_adapter(plan, path, outputs[scale])
        if options.write_model_card:
            hashes = hash_inputs(plan, options.quiet)
            for scale, path in staging.items():
                recipe = _recipe(config_source, scale)
                card = model_card(plan, outputs[scale].resolve().name, recipe, hashes)
                (path / "README.md").write_text(card, encoding="utf-8")
                (path / "mergekit_config.yml").write_text(recipe, encoding="utf-8")
    if not options.quiet:
        click.echo(not_used, err=True)


def require_device(options: MergeOptions) -> None:
    """MergeError where the options ask for a device that is not there."""
    if options.multi_gpu and not torch.cuda.device_count():
        raise MergeError("--multi-gpu: torch finds no GPU here. Leave it out to merge on the CPU.")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without it
        told = str(error).splitlines()[0]
        raise MergeError(f"The device {options.device} cannot be used ({told}); the default is cpu.") from error


@contextmanager
def enough_memory(device: str | None) -> Iterator[None]:
    """MergeError where the device that computes has no room for what is computed."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        told = str(error).partition(". ")[0] or "out of memory"
        advice = "the machine needs more memory" if device in (None, "cpu") else "merge on the CPU, without --cuda"
        raise MergeError(f"The memory of {device or 'cpu'} does not suffice ({told}): {advice}.") from error


def _recipe(source: str, scale: float | None) -> str:
    if scale is None:
        return source
    return f"# One of a sweep: what this merge changes of its base was multiplied by {scale:g}.\n{source}"


def check_merge(config: MergeConfiguration, options: MergeOptions, config_source: str | None = None) -> str:
    """Plan a merge to the last tensor and say what it would do; nothing is read but headers, side files and samples.

    Raises:
        MergeError: the merge would be refused.
    """
    with system_errors(), plan_merge(config, options, source=config_source) as plan:
        side_files = _side_files(plan, _side_files_source(plan, options), options)
        _templated(plan, side_files, options)
        _verify_planned(plan, plan.planner.plan_to_disk("unused"), options)
        size = f"{plan.output_bytes / 1e9:.3g} GB in {len(plan.planner.output)} tensors"
        beside = f"{size_of(side_files.nbytes)} in {len(side_files.copies)} files beside them"
        return "\n".join([plan.report(), f"  output: {size}, {beside}", plan.not_used(side_files.copies)])


def _verify_planned(plan: Plan, targets: Sequence[Task[Any]], options: MergeOptions) -> None:
    """Build what the merge will end in, tokenizer and config, and see that its tensors are those of a model.

    Raises:
        MergeError: they are not.
    """
    if plan.inputs.composition is not None:
        verified_omni(plan, planned_tensors(plan, plan.inputs.composition.vocabulary.size))
        return
    rows = _planned_rows(plan, targets, options)
    verified_config(plan, planned_tensors(plan, rows), Path(), rows)


def _planned_rows(plan: Plan, targets: Sequence[Task[Any]], options: MergeOptions) -> int | None:
    """Rows of the output's embeddings where the merge changes the vocabulary; else None."""
    inputs, section = plan.inputs, plan.config.tokenizer
    for task in targets:
        if isinstance(task, BuildVocabulary):
            vocabulary = task.execute()
            require_token_rows((section.tokens if section else None) or {}, vocabulary)
            tokens = len(vocabulary.tokenizer.get_vocab())
            multiple = (section.pad_to_multiple_of if section else None) or 1
            return math.ceil(tokens / multiple) * multiple
    if not options.unsafe_truncate_embeddings:
        return None
    name = inputs.base_checkpoint.embeddings
    return min(inputs.checkpoints[m].tensors[own[name]].shape[0] for m, own in inputs.names.items() if name in own)


def _execute(targets: list[Task[Any]], options: MergeOptions) -> PreTrainedTokenizerBase | None:
    """Run the task graph; returns the tokenizer if the config asks for a new one."""
    tokenizer = None
    for _task, value in executor_for(targets, options).run(quiet=options.quiet):
        if isinstance(value, TokenizerInfo):
            tokenizer = value.tokenizer
    return tokenizer


def _side_files_source(plan: Plan, options: MergeOptions) -> list[Path]:
    """The directories of the model whose tokenizer and processor files the output gets, and of an adapter on it."""
    wanted = _side_files_name(plan)
    if wanted == "base":
        return [plan.inputs.base_checkpoint.directory]
    with refused_by("mergekit.common", about=f"parameter {SIDE_FILES}: "):
        model = ModelReference.parse(wanted)
    found = [locate(model.model, options), *([locate(model.lora, options)] if model.lora else [])]
    if not any(is_of_model(path.name) for directory in found for path in directory.iterdir()):
        raise MergeError(
            f"parameter {SIDE_FILES}: {wanted} holds no files of a model, neither tokenizer nor processor."
        )
    return found


def _side_files_name(plan: Plan) -> str:
    wanted = (plan.config.parameters or {}).get(SIDE_FILES, "base")
    if not isinstance(wanted, str) or not wanted.strip():
        raise MergeError(f"parameter {SIDE_FILES}: {wanted!r} is not a model; write `base` or a model's path.")
    return wanted


def _side_files(plan: Plan, source: list[Path], options: MergeOptions) -> SideFiles:
    """The side files of the output; what there is to say of them joins the notes of the plan."""
    wanted = _side_files_name(plan)
    name = as_written(plan.inputs.base) if wanted == "base" else wanted
    planned = plan_side_files(plan.inputs, plan.config, source, name, options.copy_tokenizer)
    plan.inputs.notes.extend([*planned.warnings, *planned.notes])
    for warning in planned.warnings:
        LOG.warning(warning)
    return planned


def _templated(plan: Plan, side_files: SideFiles, options: MergeOptions) -> PreTrainedTokenizerBase | None:
    """The tokenizer among the side files with the chat template that the config asks for; None if it asks for none.

    Raises:
        MergeError: the tokenizer cannot be loaded, or the template is none.
    """
    if not plan.config.chat_template:
        return None
    source = plan.inputs.base_checkpoint.directory
    with linked_tokenizer(side_files, source / "config.json") as directory:
        tokenizer = load_tokenizer(_side_files_name(plan), directory, options.trust_remote_code)
    with refused_by("mergekit.merge", about="chat_template: "):
        _set_chat_template(tokenizer, plan.config, trust_remote_code=options.trust_remote_code)
    return tokenizer


def _finish(
    plan: Plan,
    staging: Path,
    side_files: SideFiles,
    built: PreTrainedTokenizerBase | None,
    templated: PreTrainedTokenizerBase | None,
    options: MergeOptions,
) -> None:
    """Add to the weights what makes them a model, and check the result.

    built: the tokenizer of the config's tokenizer section. templated: the copied one with the chat template asked for.
    """
    written = read_headers(staging)
    if plan.inputs.composition is not None:
        write_side_files(side_files, staging)
        finish_omni(plan, written, staging)
        return
    rows = _vocabulary_size(plan, written) if built or options.unsafe_truncate_embeddings else None
    require_as_planned(planned_tensors(plan, rows), written)
    write_config(verified_config(plan, written, staging, rows), staging)
    write_side_files(side_files, staging)
    tokenizer = built or (templated if options.copy_tokenizer else None)
    if tokenizer is not None:
        if templated is not None:
            tokenizer.chat_template = templated.chat_template
            drop_chat_template(staging)
        tokenizer.save_pretrained(staging)


def _carry_own_adapter(plan: Plan, staging: Path, out: Path) -> None:
    """Copy the adapter that the model's class loads by itself; as `save_pretrained` has it, its base is the output."""
    if (own := plan.inputs.own_adapter) is None:
        return
    for name in own.files:
        shutil.copyfile(own.directory / name, staging / name)
    config = staging / ADAPTER_CONFIG
    content = {**read_json(config), "base_model_name_or_path": str(out)}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _vocabulary_size(plan: Plan, written: Mapping[str, DiskTensor]) -> int:
    """Rows of the written embeddings."""
    base = plan.inputs.base_checkpoint
    name = base.embeddings
    return written[base.group_of[name].disk[0]].shape[0]
