"""One multimodal merge, from its config to a finished and checked directory."""

from __future__ import annotations

import logging
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
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from mergekit_mm.architecture.disk import DiskTensor, read_headers
from mergekit_mm.architecture.hub import locate
from mergekit_mm.errors import MergeError
from mergekit_mm.finishing.card import hash_inputs, model_card
from mergekit_mm.finishing.config_json import output_config, write_config
from mergekit_mm.finishing.directory import check_output, check_room, staged
from mergekit_mm.finishing.omni import finish_omni
from mergekit_mm.finishing.side_files import (
    adopt_chat_template,
    copy_side_files,
    drop_chat_template,
    has_tokenizer,
)
from mergekit_mm.finishing.verify import verify_written
from mergekit_mm.graph.executors import executor_for
from mergekit_mm.graph.tokenizer import BuildVocabulary, tokenizer_directory
from mergekit_mm.planning.parameters import SIDE_FILES
from mergekit_mm.planning.plan import Plan, plan_merge

LOG = logging.getLogger(__name__)


class MergeRefused(click.ClickException):
    """A merge that cannot be done; on the command line, the message is all that is shown."""


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that are about the user's config or files into `MergeRefused`."""
    try:
        yield
    except kinds as error:
        raise MergeRefused(str(error)) from error


def run_multimodal_merge(
    config: MergeConfiguration, out_path: str, options: MergeOptions, config_source: str | None
) -> None:
    """Plan, merge, finish and check one multimodal merge; `out_path` appears only if all of that succeeds.

    Raises:
        MergeRefused: the config or an input is not fit to be merged.
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
        MergeRefused: as for one merge, or the config has no base model to scale from.
    """
    if not config.base_model:
        raise MergeRefused("A sweep scales what a merge changes of its base: add `base_model: <model>` to the config.")
    outputs: dict[float | None, Path] = {s: Path(out_path) / f"scaling_{s:.12g}" for s in scales}
    _run(config, outputs, options, config_source)
    return list(outputs.values())


def _run(
    config: MergeConfiguration, outputs: Mapping[float | None, Path], options: MergeOptions, config_source: str
) -> None:
    """Merge to every output: scale of the merged delta (None: as it is) -> directory."""
    if options.random_seed is not None:
        transformers.trainer_utils.set_seed(options.random_seed)
    with ExitStack() as inputs:
        with refusing(MergeError, ValueError, RuntimeError, OSError):
            require_device(options)
            plan = inputs.enter_context(plan_merge(config, options, None not in outputs, config_source))
            side_files = _side_files_source(plan, options)
            tokenizer = config.tokenizer.source if config.tokenizer else config.tokenizer_source
            for out in outputs.values():
                check_output(out, [*plan.inputs.directories, side_files, *tokenizer_directory(tokenizer)])
            templated = _templated(plan, side_files, options)
        with refusing(MergeError, ValueError, OSError, SafetensorError), ExitStack() as directories:
            staging = {scale: directories.enter_context(staged(out)) for scale, out in outputs.items()}
            with refusing(RuntimeError):  # mergekit's, as for slices of different lengths
                targets = [t for scale, path in staging.items() for t in plan.planner.plan_to_disk(str(path), scale)]
            check_room(next(iter(staging.values())), plan.output_bytes * len(outputs))
            if not options.quiet:
                click.echo(plan.report(), err=True)
            built = _execute(list(dict.fromkeys(targets)), options)
            for path in staging.values():
                _finish(plan, path, side_files, built, templated, options)
            if options.write_model_card:
                hashes = hash_inputs(plan, options.quiet)
                for scale, path in staging.items():
                    source = _recipe(config_source, scale)
                    card = model_card(plan, outputs[scale].resolve().name, source, hashes)
                    (path / "README.md").write_text(card, encoding="utf-8")
                    (path / "mergekit_config.yml").write_text(source, encoding="utf-8")


def require_device(options: MergeOptions) -> None:
    """MergeError where the options ask for a device that is not there."""
    if options.multi_gpu and not torch.cuda.device_count():
        raise MergeError("--multi-gpu: torch finds no GPU here. Leave it out to merge on the CPU.")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without it
        told = str(error).splitlines()[0]
        raise MergeError(f"The device {options.device} cannot be used ({told}); the default is cpu.") from error


def _recipe(source: str, scale: float | None) -> str:
    if scale is None:
        return source
    return f"# One of a sweep: what this merge changes of its base was multiplied by {scale:g}.\n{source}"


def check_merge(config: MergeConfiguration, options: MergeOptions, config_source: str | None = None) -> str:
    """Plan a merge to the last tensor and say what it would do; nothing is read but headers and tokenizers.

    Raises:
        MergeRefused: the merge would be refused.
    """
    with (
        refusing(MergeError, ValueError, RuntimeError, OSError),
        plan_merge(config, options, source=config_source) as plan,
    ):
        _templated(plan, _side_files_source(plan, options), options)
        for task in plan.planner.plan_to_disk("unused"):
            if isinstance(task, BuildVocabulary):
                task.execute()
        return plan.report() + f"\n  output: {plan.output_bytes / 1e9:.3g} GB in {len(plan.planner.output)} tensors"


def _execute(targets: list[Task[Any]], options: MergeOptions) -> PreTrainedTokenizerBase | None:
    """Run the task graph; returns the tokenizer if the config asks for a new one."""
    tokenizer = None
    for _task, value in executor_for(targets, options).run(quiet=options.quiet):
        if isinstance(value, TokenizerInfo):
            tokenizer = value.tokenizer
    return tokenizer


def _side_files_source(plan: Plan, options: MergeOptions) -> Path:
    """The directory whose tokenizer and processor files the output gets."""
    config, source = plan.config, plan.inputs.base_checkpoint.directory
    wanted = (config.parameters or {}).get(SIDE_FILES, "base")
    if not isinstance(wanted, str):
        raise MergeError(f"parameter {SIDE_FILES}: {wanted!r} is not a model; write `base` or a model's path.")
    if wanted != "base":
        source = locate(ModelReference.parse(wanted).model, options)
    makes_one = config.tokenizer or config.tokenizer_source or plan.inputs.composition
    if not makes_one and options.copy_tokenizer and not has_tokenizer(source):
        plan.inputs.notes.append(
            f"{source} has no tokenizer, so the output will have none; the parameter {SIDE_FILES} names another model "
            "to copy tokenizer and processor from."
        )
    return source


def _templated(plan: Plan, side_files: Path, options: MergeOptions) -> PreTrainedTokenizerBase | None:
    """The tokenizer among the side files with the chat template that the config asks for; None if it asks for none.

    Raises:
        OSError, ValueError: the tokenizer cannot be loaded.
        RuntimeError: mergekit's, for a template that is none.
    """
    if not plan.config.chat_template:
        return None
    tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
        side_files, trust_remote_code=options.trust_remote_code
    )
    _set_chat_template(tokenizer, plan.config, trust_remote_code=options.trust_remote_code)
    return tokenizer


def _finish(
    plan: Plan,
    staging: Path,
    side_files: Path,
    built: PreTrainedTokenizerBase | None,
    templated: PreTrainedTokenizerBase | None,
    options: MergeOptions,
) -> None:
    """Add to the weights what makes them a model, and check the result.

    built: the tokenizer of the config's tokenizer section. templated: the copied one with the chat template asked for.
    """
    base = plan.inputs.base_checkpoint
    written = read_headers(staging)
    if plan.inputs.composition is not None:
        finish_omni(plan, written, staging)
        return
    vocabulary = _vocabulary_size(plan, written) if built or options.unsafe_truncate_embeddings else None
    write_config(output_config(base.config, written, plan.planner.layer_sources(), vocabulary), staging)
    verify_written(staging, plan.planner.output)
    copy_side_files(side_files, staging, options.copy_tokenizer)
    tokenizer = built or (templated if options.copy_tokenizer else None)
    if tokenizer is not None:
        if templated is not None:
            tokenizer.chat_template = templated.chat_template
            drop_chat_template(staging)
        tokenizer.save_pretrained(staging)
    # a text-only model's template would not know about images
    alike = [m for m, c in plan.inputs.checkpoints.items() if c.kind == base.kind]
    experts = {m: plan.inputs.checkpoints[m].directory for m in alike if m != plan.inputs.base}
    if options.copy_tokenizer and (said := adopt_chat_template(staging, experts)):
        plan.inputs.notes.append(said)
        LOG.warning(said)


def _vocabulary_size(plan: Plan, written: Mapping[str, DiskTensor]) -> int:
    """Rows of the written embeddings."""
    base = plan.inputs.base_checkpoint
    name = base.backbone["embed_tokens.weight"]
    return written[base.group_of[name].disk[0]].shape[0]
