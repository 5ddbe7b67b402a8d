"""One multimodal merge, from its config to a finished and checked directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import transformers
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from transformers import PreTrainedTokenizerBase

from mergekit_mm.checkpoints.tokenizer import load_tokenizer
from mergekit_mm.console import teller
from mergekit_mm.errors import MergeError, refused_by, system_errors
from mergekit_mm.output.card import hash_inputs, model_card
from mergekit_mm.output.directory import check_output, check_room, staged
from mergekit_mm.output.finish import carry_own_adapter, finish_model
from mergekit_mm.output.side_files import linked_tokenizer
from mergekit_mm.output.verify import verify_planned
from mergekit_mm.plan.build import build_plan, with_side_files
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tasks.chat_template import set_chat_template
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.executors import write_models
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tasks.tokenizer import planned_rows, tokenizer_directory


def run_multimodal_merge(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    config_source: str | None,
    solutions: Solutions | None = None,
) -> None:
    """Plan, merge, finish and check one multimodal merge; `out_path` appears only if all of that succeeds.

    solutions: where merged deltas are looked up and kept, if they are to be.

    Raises:
        MergeError: the config or an input is not fit to be merged, or the system does not let files be read or written.
    """
    _run(config, {None: Path(out_path)}, options, config_source or config.to_yaml(), solutions)


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
    config: MergeConfiguration,
    outputs: Mapping[float | None, Path],
    options: MergeOptions,
    config_source: str,
    solutions: Solutions | None = None,
) -> None:
    """Run one merge and write it to every output.

    outputs: strength of the merged delta -> directory. A plain merge, which is no sweep, has the one strength None.
    """
    tell = teller(options.quiet)
    require_device(options)
    if options.random_seed is not None:
        transformers.trainer_utils.set_seed(options.random_seed)
    with system_errors(next(iter(outputs.values()))), enough_memory(options.device), ExitStack() as directories:
        plan = with_side_files(build_plan(config, options, config_source), options)
        assert plan.side_files is not None
        tokenizer = config.tokenizer.source if config.tokenizer else config.tokenizer_source
        for out in outputs.values():
            sources = [*plan.side_files.sources, *tokenizer_directory(tokenizer)]
            check_output(out, [*plan.inputs.directories, *sources])
        templated = _templated_tokenizer(plan, options)
        staging = {scale: directories.enter_context(staged(out)) for scale, out in outputs.items()}
        compiler = Compiler(plan, options, sweep=None not in outputs, solutions=solutions)
        targets = [
            task
            for scale, path in staging.items()
            for task in compiler.to_model(str(path), 1.0 if scale is None else scale)
        ]
        verify_planned(plan, planned_rows(plan, compiler.vocabulary, options))
        check_room(next(iter(staging.values())), (plan.output_bytes + plan.side_files.nbytes) * len(outputs))
        not_used = plan.not_used()
        tell(f"{plan.report()}\n{not_used}")
        built = write_models(targets, options)
        for scale, path in staging.items():
            finish_model(plan, path, built, templated, options)
            carry_own_adapter(plan, path, outputs[scale])
        if options.write_model_card:
            hashes = hash_inputs(plan, options.quiet)
            for scale, path in staging.items():
                recipe = _recipe(config_source, scale)
                card = model_card(plan, outputs[scale].resolve().name, recipe, hashes)
                (path / "README.md").write_text(card, encoding="utf-8")
                (path / "mergekit_config.yml").write_text(recipe, encoding="utf-8")
    tell("\n".join([*compiler.found_scalings.lines(), not_used]))


def require_device(options: MergeOptions) -> None:
    """MergeError if the options ask for a device that cannot be used."""
    if options.multi_gpu and not torch.cuda.device_count():
        raise MergeError("--multi-gpu: torch finds no GPU here. Leave it out to merge on the CPU.")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter if it was built without that device.
        cause = str(error).splitlines()[0]
        raise MergeError(f"The device {options.device} cannot be used ({cause}); the default is cpu.") from error


@contextmanager
def enough_memory(device: str | None, advice: str = "") -> Iterator[None]:
    """A context that turns errors of too little memory, on the device that computes, into a MergeError.

    advice: what helps; by default what helps a merge.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # of the CPU's memory, torch says so by an error of no class of its own
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        cause = str(error).partition("DefaultCPUAllocator: ")[2] or str(error)
        cause = cause.partition(". ")[0] or "out of memory"
        is_cpu = device in (None, "cpu")
        advice = advice or ("the machine needs more memory" if is_cpu else "merge on the CPU, without --cuda")
        raise MergeError(f"The memory of {device or 'cpu'} does not suffice ({cause}): {advice}.") from error


def _recipe(source: str, scale: float | None) -> str:
    """The text of mergekit_config.yml: that of the config, with a comment on the strength if it is one of a sweep."""
    if scale is None:
        return source
    return f"# One of a sweep: what this merge changes of its base was multiplied by {scale:g}.\n{source}"


def plan_merge(config: MergeConfiguration, options: MergeOptions, config_source: str | None = None) -> MergePlan:
    """The plan of a merge with its side files, after a check that it ends in a model that loads; nothing is written.

    Headers, side files and samples of values are read.

    Raises:
        MergeError: the merge would be refused.
    """
    with system_errors():
        plan = with_side_files(build_plan(config, options, config_source), options)
        _templated_tokenizer(plan, options)
        compiler = Compiler(plan, options)
        compiler.to_model("unused")
        verify_planned(plan, planned_rows(plan, compiler.vocabulary, options))
        return plan


def _templated_tokenizer(plan: MergePlan, options: MergeOptions) -> PreTrainedTokenizerBase | None:
    """The tokenizer among the side files with the chat template that the config asks for; None if it asks for none.

    Raises:
        MergeError: the tokenizer cannot be loaded, or the template does not exist.
    """
    if not plan.config.chat_template:
        return None
    assert plan.side_files is not None
    source = plan.inputs.base_checkpoint.directory
    with linked_tokenizer(plan.side_files, source / "config.json") as directory:
        tokenizer = load_tokenizer(plan.side_files.source_name, directory, options.trust_remote_code)
    with refused_by("mergekit.merge", about="chat_template: "):
        set_chat_template(tokenizer, plan.config, options.trust_remote_code)
    return tokenizer
