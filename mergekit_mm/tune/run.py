"""All steps of a run: candidates, questions, rounds, report, and the best model if it is asked for."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm import __version__
from mergekit_mm.align.answers import Asking, fingerprint
from mergekit_mm.align.answers import Kept as KeptAnswers
from mergekit_mm.align.inputs import load as load_causal
from mergekit_mm.align.job import experts_of
from mergekit_mm.align.samples import Sample, by_expert
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.errors import MergeError, UserError, system_errors
from mergekit_mm.evaluation.model import asked_tasks
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.merge import plan_merge, require_device, run_multimodal_merge
from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.declarations import makes_factors_of_factors
from mergekit_mm.output.directory import check_output, check_room
from mergekit_mm.plan.build import build_plan
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.scope import is_planned_here
from mergekit_mm.plan.tensor_plan import Merge, TensorPlan
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tune.candidates import STRENGTHS, Candidate, Variant, candidates, default_variants
from mergekit_mm.tune.halving import Round, new_answers, rounds
from mergekit_mm.tune.in_memory import InMemory
from mergekit_mm.tune.judges import ByDivergence, ByTasks, Judge
from mergekit_mm.tune.kept import Kept
from mergekit_mm.tune.race import Race
from mergekit_mm.tune.report import BEST, sentences, write_report

Tell = Callable[[str], None]
MODEL = "model"  # the folder of the output with the best model


@dataclass(frozen=True)
class Tasks:
    """Labelled questions. names: of tasks, groups or patterns. folders, metadata, metric: as `asked_tasks.load`."""

    names: Sequence[str]
    folders: Sequence[Path]
    metadata: Mapping[str, Any]
    metric: str | None


@dataclass(frozen=True)
class Samples:
    """Unlabelled samples. tokens: the longest answer of an expert. top: the tokens of a distribution that are kept."""

    samples: Sequence[Sample]
    tokens: int = 32
    top: int = 64


@dataclass(frozen=True)
class Settings:
    """What is tried, and how.

    variants: methods with their parameters; those of `default_variants` if there are none. strengths: by method; those
    of "" are for all others. limit: questions of each set in the first round; None for all, in one round. dtype: of the
    model in memory, by torch's name, or `auto` for that of its files. at_once: questions in a batch. model_arguments:
    others of the lm-eval model `mllm`. seed: of the order of the questions. writes_model: whether the best model is
    written.
    """

    variants: Sequence[Variant] = ()
    strengths: Mapping[str, Sequence[float]] = field(default_factory=dict)
    limit: int | None = 100
    dtype: str = "float32"
    at_once: int = 8
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    writes_model: bool = False


def tune(
    config: MergeConfiguration,
    source: str,
    out: Path,
    options: MergeOptions,
    settings: Settings,
    measured: Tasks | Samples,
    work: Path | None,
    tell: Tell,
) -> list[str]:
    """Try methods at strengths, and write the config of the best with a report to `out`. Returns what can be said.

    source: the text of the config. work: the folder for solved merges, the loaded model and the values of questions,
    which stays. None: a folder beside `out`, from which an interrupted run goes on, and which is removed at the end.

    Raises:
        MergeError: the config's own merge would be refused, no method applies, or a model cannot be loaded.
        EvaluationError: a task is not known or has no metric to compare by, or a question cannot be asked.
    """
    require_device(options)
    if not is_planned_here(config):
        raise MergeError(
            "These are text-only models: mergekit merges them by itself, and `tune` is for multimodal ones."
        )
    if not config.base_model:
        raise MergeError("Strengths scale what a merge changes of its base: add `base_model: <model>` to the config.")
    kept = work or out.resolve().parent / f".{out.name}.tune"
    with system_errors(kept), _enough_memory(options.device):
        plan = plan_merge(config, options, source)
        check_output(out, plan.inputs.directories)
        tried, solved, notes = _candidates(source, plan, options, settings, tell)
        judge = _judge(measured, plan, settings, options, kept, tell)
        race = rounds(len(tried), settings.limit, max(judge.sizes.values()))
        _tell_costs(tried, solved, plan, race, judge, settings, kept, tell)
        files = _fingerprint(plan)
        solutions = Solutions(kept / "solutions", _key(source, files, options.device, options.random_seed))
        memory = InMemory(kept, options, solutions, _loader(measured, settings, options))
        where = (options.device, settings.dtype, settings.at_once, dict(settings.model_arguments))
        how = _key(files, options.random_seed, *where)
        runner = Race(
            memory,
            judge,
            lambda candidate: build_plan(candidate.config, options, candidate.source),
            Kept(kept / "values"),
            how,
            tell,
        )
        outcome = runner.run(tried, race)
        said = sentences(outcome, runner, _command(out, options))
        title = "mean, %" if judge.in_percent else "divergence" if isinstance(measured, Samples) else "mean"
        facts = {"mergekit-mm": __version__, "seed": settings.seed, "dtype": settings.dtype, "sets": dict(judge.sizes)}
        for remark in judge.remarks:
            tell(remark)
        write_report(
            out, outcome, runner, said, [*judge.measures, *judge.remarks, *notes, *runner.left_out], facts, title
        )
        if settings.writes_model:
            best = outcome.chosen.candidate
            quiet = options.model_copy(update={"quiet": True})
            run_multimodal_merge(best.config, str(out / MODEL), quiet, best.source, solutions=solutions)
    if work is None:
        shutil.rmtree(kept, ignore_errors=True)
    return said


def _candidates(
    source: str, plan: MergePlan, options: MergeOptions, settings: Settings, tell: Tell
) -> tuple[list[Candidate], int, list[str]]:
    """The candidates whose methods apply to the config, each once; the size in bytes of what is kept of all solutions;
    and a note on each method that does not apply."""
    variants = settings.variants or default_variants(plan)
    if unknown := settings.strengths.keys() - {"", *(variant.method for variant in variants)}:
        raise MergeError(f"--strengths: {sorted(unknown)[0]} is none of the methods that are tried.")
    found: list[Candidate] = []
    first_plans: list[MergePlan] = []  # of each variant at its first strength, which tells whether two are the same
    notes = []
    for variant in variants:
        strengths = settings.strengths.get(variant.method, settings.strengths.get("", STRENGTHS))
        own = candidates(source, variant, strengths)
        try:
            first = plan_merge(own[0].config, options, own[0].source)
        except MergeError as error:
            notes.append(f"Left out: {variant.label}, as this merge refuses it: {str(error).splitlines()[0]}")
            tell(notes[-1])
            continue
        if all(first.tensors != other.tensors for other in first_plans):
            first_plans.append(first)
            found += own
    if not found:
        raise MergeError("\n".join(["None of the methods applies to this config.", *notes]))
    return found, sum(map(_solution_bytes, first_plans)), notes


def _judge(
    measured: Tasks | Samples, plan: MergePlan, settings: Settings, options: MergeOptions, kept: Path, tell: Tell
) -> Judge:
    if isinstance(measured, Tasks):
        loaded = asked_tasks.load(measured.names, measured.folders, measured.metadata, measured.metric, settings.seed)
        return ByTasks(loaded, settings.seed, progress=not options.quiet)
    experts = experts_of(plan)
    asking = Asking(measured.tokens, measured.top, settings.dtype, options.device or "cpu")
    own = by_expert(measured.samples, list(experts))
    return ByDivergence(experts, own, KeptAnswers(kept / "answers", asking), settings.seed, settings.at_once, tell)


def _loader(measured: Tasks | Samples, settings: Settings, options: MergeOptions) -> Callable[[str], MLLM]:
    device = options.device or "cpu"
    if isinstance(measured, Samples):
        return lambda path: load_causal(path, None, settings.dtype, device)

    def load(path: str) -> MLLM:
        given = {**settings.model_arguments, "dtype": settings.dtype, "device": device, "batch_size": settings.at_once}
        try:
            return MLLM(path, **given)
        except UserError:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise MergeError(f"The merged model cannot be loaded: {str(error).splitlines()[0]}") from error

    return load


def _tell_costs(
    tried: Sequence[Candidate],
    solved: int,
    plan: MergePlan,
    race: Sequence[Round],
    judge: Judge,
    settings: Settings,
    kept: Path,
    tell: Tell,
) -> None:
    """Tell what will be tried and asked, and what it takes. MergeError if the disk has too little room."""
    for sentence in judge.measures:
        tell(sentence)
    variants = dict.fromkeys(candidate.variant for candidate in tried)
    tell(f"{len(tried)} candidates: {', '.join(variant.label for variant in variants)}")
    steps = " -> ".join(f"{each.candidates} x {each.questions}" for each in race)
    answers = f"{new_answers(race, judge.sizes):,} answers in all"
    tell(f"rounds, as candidates x questions of each {judge.unit}: {steps}; {answers}")
    in_memory = plan.output_bytes
    if settings.dtype != "auto":
        width = getattr(torch, settings.dtype).itemsize
        in_memory = sum(output.like.nbytes // output.like.dtype.itemsize for output in plan.outputs) * width
    on_disk = plan.output_bytes * (2 if settings.writes_model else 1) + solved
    tell(f"memory: {size_of(in_memory)} for one model, and one matrix of each input; disk: up to {size_of(on_disk)}")
    kept.mkdir(parents=True, exist_ok=True)
    check_room(kept, on_disk)


def _solution_bytes(plan: MergePlan) -> int:
    """The size of what a merge keeps of its solution: a float32 for each entry of its deltas, or of their factors."""
    method, total = plan.config.merge_method, 0
    for tensor in plan.merged_tensors if is_own_method(method) else ():
        if not isinstance(tensor.shared_action, Merge):
            continue
        shape, entries = tensor.info.shape, math.prod(tensor.info.shape)
        if makes_factors_of_factors(method, tensor.parameters) and (rank := _rank_of_sum(plan, tensor)) is not None:
            entries = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) * rank
        total += 4 * entries
    return total


def _rank_of_sum(plan: MergePlan, tensor: TensorPlan) -> int | None:
    """The rank of a sum of all adapters' deltas; None if an expert is more than an adapter of the base."""
    ranks = [
        plan.inputs.adapter_rank(model, tensor.inputs[model])
        if model.lora and plan.inputs.plain(model) == tensor.base
        else None
        for model in tensor.experts
    ]
    known = [rank for rank in ranks if rank is not None]
    return sum(known) if len(known) == len(ranks) and len(tensor.info.shape) > 1 else None


def _fingerprint(plan: MergePlan) -> str:
    """A text that changes where a file of weights of an input does."""
    checkpoints, adaptations = plan.inputs.checkpoints.values(), plan.inputs.adaptations.values()
    files = [checkpoint.directory / file for checkpoint in checkpoints for file in checkpoint.files]
    return fingerprint([*files, *(file for adaptation in adaptations for file in adaptation.adapter.files)])


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _command(out: Path, options: MergeOptions) -> str:
    """The command that makes the best model."""
    seed = "" if options.random_seed is None else f" --random-seed {options.random_seed}"
    return f"mergekit-yaml {out / BEST} {out / MODEL}{seed}{' --cuda' if options.cuda else ''}"


@contextmanager
def _enough_memory(device: str | None) -> Iterator[None]:
    """A context that turns errors of too little memory into a MergeError that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        cause = str(error).partition(". ")[0] or "out of memory"
        raise MergeError(
            f"The memory of {device or 'cpu'} does not suffice ({cause}): lower --batch-size or the size of the media, "
            "or choose --dtype bfloat16. The same command goes on from here."
        ) from error
