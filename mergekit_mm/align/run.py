"""All steps of an alignment: plan, start, answers, training, output."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.align import adapter, coefficients
from mergekit_mm.align.answers import Kept, release
from mergekit_mm.align.costs import TO_LOWER, tell_memory, tell_plan
from mergekit_mm.align.finish import write_report
from mergekit_mm.align.inputs import encode, load, require_media, with_answer
from mergekit_mm.align.job import Job, experts_of
from mergekit_mm.align.recipe import require_weighted
from mergekit_mm.align.recomputing import recompute_layers
from mergekit_mm.align.samples import Sample, by_expert, split
from mergekit_mm.align.settings import RATES, Settings
from mergekit_mm.align.training import Lesson, Lessons, Result, train
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.merge import enough_memory, plan_merge, require_device, run_multimodal_merge
from mergekit_mm.output.directory import check_output, staged
from mergekit_mm.plan.scope import is_planned_here

__all__ = ["RATES", "Settings", "align"]


class Learnt(Protocol):
    """What a training leaves in files and small tensors, once its model is gone."""

    @property
    def how(self) -> str:
        """One sentence on what was done."""

    def write(self, job: Job, out: Path) -> None:
        """Write the model that was learnt."""


def align(
    config: MergeConfiguration,
    out: Path,
    options: MergeOptions,
    settings: Settings,
    samples: Sequence[Sample],
    source: str,
    work: Path | None,
    tell: Callable[[str], None],
    partial: bool = False,
) -> Result:
    """Merge, and let the merged model learn from each expert's answers to its samples; `out` gets the model.

    work: the folder for the start, the experts' answers and the state of the training, which stays. None: a folder
    beside `out`, from which an interrupted alignment goes on, and which is removed once `out` is there. partial:
    whether experts may be without samples: nothing is learnt from them, and nothing holds what they can do.

    Raises:
        MergeError: the merge would be refused, samples do not fit, a model cannot be loaded, or memory or disk do not
            suffice. EvaluationError: a model does not take a sample's media.
    """
    require_device(options)
    if not is_planned_here(config):
        raise MergeError(
            "These are text-only models: mergekit merges them by itself, and `align` is for multimodal ones."
        )
    folder = work or out.resolve().parent / f".{out.name}.align"
    with system_errors(folder), enough_memory(options.device, TO_LOWER):
        plan = plan_merge(config, options, source)
        check_output(out, plan.inputs.directories)
        if settings.way == "coefficients":
            require_weighted(plan, source)
        experts = experts_of(plan)
        splits = split(by_expert(samples, list(experts), partial), settings.per_expert, settings.seed)
        for name, own in splits.items():
            require_media(experts[name].model, [*own.trained, *own.held_back])
        job = Job(config, plan, source, options, settings, splits, out, folder, tell)
        tell_plan(job)
        _merge(job)
        result, learnt = _learn(job, _ask(job))
        release()
        _write(job, result, learnt)
    if work is None:
        shutil.rmtree(folder)
    return result


def _merge(job: Job) -> None:
    """Make the start, if it is not there yet: a directory appears only once it is complete."""
    if not job.start.is_dir():
        job.tell(f"merging by {job.config.merge_method}")
        run_multimodal_merge(job.config, str(job.start), job.quiet, job.source)


def _ask(job: Job) -> Kept:
    """Let each expert answer its samples, one expert in memory at a time."""
    answers = Kept(job.answers, job.asking)
    for name, own in job.splits.items():
        answers.ask(job.experts[name], [*own.trained, *own.held_back], job.tell)
    return answers


def _learn(job: Job, answers: Kept) -> tuple[Result, Learnt]:
    """Train; the model and all that holds it are local to this function."""
    lm = load(str(job.start), None, job.settings.dtype, job.device)
    lessons = _lessons(job, answers, lm)
    way: adapter.AdapterWay | coefficients.CoefficientWay
    way = (adapter if job.settings.way == "adapter" else coefficients).prepare(job, lm)
    tell_memory(job, lm, lessons, recompute_layers(lm.model, job.settings.recompute))
    result = train(way, lessons, job.settings.schedule, job.training, job.key, job.tell)
    if isinstance(way, adapter.AdapterWay):
        return result, adapter.Adapter.of(way, job)
    return result, coefficients.Coefficients.of(way, job)


def _lessons(job: Job, answers: Kept, lm: MLLM) -> list[Lessons]:
    """The samples with the experts' answers, as the loaded start reads them."""
    lessons = []
    for name, own in job.splits.items():
        every = [*own.trained, *own.held_back]
        said = answers.read(job.experts[name], every, lm.tokenizer)
        made = [
            Lesson(with_answer(inputs, answer.ids), answer)
            for inputs, answer in zip(encode(lm, every), said, strict=True)
        ]
        lessons.append(Lessons(name, made[: len(own.trained)], made[len(own.trained) :]))
    return lessons


def _write(job: Job, result: Result, learnt: Learnt) -> None:
    """Write the output: what was learnt, or the start if that was not better."""
    begins_at_merge = job.settings.way == "adapter" or coefficients.has_merged(job)
    with staged(job.out) as staging:
        if result.best or not begins_at_merge:
            learnt.write(job, staging)
        else:
            shutil.copytree(job.start, staging, dirs_exist_ok=True)
        write_report(job, staging, learnt.how if result.best else "The start was kept.", result)
