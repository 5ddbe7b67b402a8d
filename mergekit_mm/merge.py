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
from mergekit_mm.errors import MergeError, SystemRefusal, refused_by, system_errors
from mergekit_mm.execution.elsewhere import job_of
from mergekit_mm.execution.files import WeightFiles, to_pickles
from mergekit_mm.execution.input_hashes import InputHashes
from mergekit_mm.execution.key import digest_of, key_of
from mergekit_mm.execution.layout import Layout
from mergekit_mm.execution.models import clear_others, write_models
from mergekit_mm.execution.preparing import prepared
from mergekit_mm.execution.progress import Progress
from mergekit_mm.execution.settings import Settings, from_environment
from mergekit_mm.execution.staging import Staging, staging
from mergekit_mm.execution.workers import is_out_of_memory
from mergekit_mm.output.card import model_card
from mergekit_mm.output.directory import check_output, check_room
from mergekit_mm.output.finish import carry_own_adapter, finish_model
from mergekit_mm.output.side_files import linked_tokenizer
from mergekit_mm.plan.build import build_plan, with_side_files
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tasks.chat_template import set_chat_template
from mergekit_mm.tasks.found_scalings import FoundScalings
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tasks.tokenizer import tokenizer_directory


def run_multimodal_merge(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    config_source: str | None,
    settings: Settings | None = None,
    solutions: Solutions | None = None,
) -> None:
    """Plan, merge, finish and check one multimodal merge; `out_path` appears only if all of that succeeds.

    What an interrupted run of the same merge has done is not done again.

    Args:
        settings: how it is carried out; None for what the environment says.
        solutions: where merged deltas are looked up and kept, if they are to be.

    Raises:
        MergeError: the config or an input is not fit to be merged, or the system does not let files be read or written.
    """
    source = config_source or config.to_yaml()
    _run(config, Path(out_path), {None: Path(out_path)}, options, source, settings or from_environment(), solutions)


def run_sweep(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    scales: Sequence[float],
    config_source: str,
    settings: Settings | None = None,
) -> list[Path]:
    """One merge at several strengths: `out_path/scaling_<s>` is base + s * (merged - base), solved once for all.

    settings: as of `run_multimodal_merge`.

    Raises:
        MergeError: as for one merge, or the config has no base model to scale from.
    """
    if not config.base_model:
        raise MergeError("A sweep scales what a merge changes of its base: add `base_model: <model>` to the config.")
    outputs: dict[float | None, Path] = {s: Path(out_path) / f"scaling_{s:.12g}" for s in scales}
    _run(config, Path(out_path), outputs, options, config_source, settings or from_environment())
    return list(outputs.values())


def _run(
    config: MergeConfiguration,
    place: Path,
    outputs: Mapping[float | None, Path],
    options: MergeOptions,
    config_source: str,
    settings: Settings,
    solutions: Solutions | None = None,
) -> None:
    """Run one merge and write it to every output.

    Args:
        place: the output, or the directory of all outputs.
        outputs: strength of the merged delta -> directory. A plain merge, which is no sweep, has the one strength None.
    """
    tell = Progress(options.quiet, settings.progress == "json")
    require_device(options)
    if options.random_seed is not None:
        transformers.trainer_utils.set_seed(options.random_seed)
    with system_errors(next(iter(outputs.values()))), enough_memory(options.device):
        plan = with_side_files(build_plan(config, options, config_source), options)
        assert plan.side_files is not None
        tokenizer = config.tokenizer.source if config.tokenizer else config.tokenizer_source
        for out in outputs.values():
            sources = [*plan.side_files.sources, *tokenizer_directory(tokenizer)]
            check_output(out, [*plan.inputs.directories, *sources])
        templated = _templated_tokenizer(plan, options)
        compiler, layout = prepared(plan, options, sweep=None not in outputs, solutions=solutions)
        built = compiler.new_vocabulary
        strengths = [1.0 if scale is None else scale for scale in outputs]
        more = {"scaling": [str(scale) for scale in outputs], "tokenizer": built and digest_of(built.tokenizer)}
        key = key_of(plan, options, **more)
        with staging(place, list(outputs.values()), key, settings, tell) as found:
            not_used = plan.not_used()
            if found.is_finished:
                tell("continuing: all tensors are done, and the output is moved into place")
            else:
                check_room(found.directory, _missing_bytes(plan, found, layout))
                tell(f"{plan.report()}\n{not_used}")
                scalings = FoundScalings()
                with found.journal as journal, ExitStack() as beside:
                    hashes = InputHashes(plan, found.done, journal) if options.write_model_card else None
                    if hashes is not None:
                        beside.enter_context(hashes)
                    contents = [found.content(number) for number in range(len(strengths))]
                    job = job_of(config, config_source, compiler, strengths, contents) if settings.ray else None
                    scalings.values.update(
                        write_models(compiler, strengths, layout, found, journal, settings, tell, job)
                    )
                    clear_others(found, layout)
                    card_hashes = hashes.result(tell) if hashes else None
                for number, (scale, out) in enumerate(outputs.items()):
                    path = found.content(number)
                    if not options.safe_serialization:
                        to_pickles(path, layout)
                    finish_model(plan, path, built and built.tokenizer, templated, options)
                    carry_own_adapter(plan, path, out)
                    if card_hashes is not None:
                        _describe(plan, path, out, _recipe(config_source, scale), card_hashes)
                tell("\n".join([*scalings.lines(), not_used]))
            found.finish()


def _missing_bytes(plan: MergePlan, found: Staging, layout: Layout) -> int:
    """What the disk has to have room for: the files that are not there at their full size yet."""
    assert plan.side_files is not None
    contents = [WeightFiles(found.content(number), layout) for number in range(len(found.outputs))]
    return sum(content.missing_bytes() + plan.side_files.nbytes for content in contents)


def _describe(plan: MergePlan, directory: Path, out: Path, recipe: str, hashes: Mapping[tuple[str, str], str]) -> None:
    """Write the model card and the config of the merge."""
    card = model_card(plan, out.resolve().name, recipe, hashes)
    (directory / "README.md").write_text(card, encoding="utf-8")
    (directory / "mergekit_config.yml").write_text(recipe, encoding="utf-8")


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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # of the CPU's memory, torch says so by an error of no class of its own, after a place in its sources
        cause = str(error).partition("DefaultCPUAllocator: ")[2] or str(error)
        cause = cause.partition(". ")[0] or "out of memory"
        is_cpu = device in (None, "cpu")
        advice = advice or ("the machine needs more memory" if is_cpu else "merge on the CPU, without --cuda")
        raise SystemRefusal(f"The memory of {device or 'cpu'} does not suffice ({cause}): {advice}.") from error


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
        compiler, _ = prepared(plan, options)
        compiler.to_model()
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
