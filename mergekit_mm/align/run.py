"""All steps of an alignment: plan, start, answers, training, output."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.align.adapter import AdapterWay, linear_layers
from mergekit_mm.align.answers import Asking, Expert, Kept, fingerprint, release
from mergekit_mm.align.coefficients import CoefficientWay, recipe, require_meant, require_weighted, store_bases
from mergekit_mm.align.finish import digests, with_adapter, write_report
from mergekit_mm.align.inputs import encode, in_model, load, with_answer
from mergekit_mm.align.samples import Sample, Split, by_expert, split
from mergekit_mm.align.training import Lesson, Lessons, Result, Schedule, train
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.merge import plan_merge, require_device, run_multimodal_merge
from mergekit_mm.output.directory import check_output, check_room, staged
from mergekit_mm.plan.as_json import digest
from mergekit_mm.plan.config import read_config
from mergekit_mm.plan.inputs import name_in_config
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.scope import is_planned_here
from mergekit_mm.plan.tensor_plan import Merge

RATES = {"adapter": 3e-3, "coefficients": 3e-2}  # the learning rate of each way that suits most merges


@dataclass(frozen=True)
class Settings:
    """What decides the result of an alignment, beside the merge config, its inputs and the samples.

    way: `adapter` or `coefficients`. per_expert: samples drawn for each expert; all if None. seed: of the draw, the
    split, the order and the adapter's beginning. answer_tokens: the longest answer. top: the tokens of a distribution
    that are kept. dtype: of the models in memory, by torch's name, or `auto` for that of the files. rank: of the
    adapter. The others are those of `training.Schedule`.
    """

    way: str = "adapter"
    per_expert: int | None = None
    seed: int = 0
    answer_tokens: int = 32
    top: int = 64
    dtype: str = "float32"
    rank: int = 8
    steps: int = 80
    rate: float = 3e-3
    per_step: int = 48
    at_once: int = 8
    check: int = 10
    patience: int = 3

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.rate, self.per_step, self.at_once, self.check, self.patience, self.seed)


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
        MergeError: the merge would be refused, samples do not fit, or a model cannot be loaded. EvaluationError: a
            model does not take a sample's media.
    """
    require_device(options)
    if not is_planned_here(config):
        raise MergeError(
            "These are text-only models: mergekit merges them by itself, and `align` is for multimodal ones."
        )
    kept = work or out.resolve().parent / f".{out.name}.align"
    with system_errors(kept), _enough_memory(options.device):
        plan = plan_merge(config, options, source)
        check_output(out, plan.inputs.directories)
        experts = experts_of(plan)
        if settings.way == "coefficients":
            require_weighted(plan, source)
        splits = split(by_expert(samples, list(experts), partial), settings.per_expert, settings.seed)
        _tell_costs(plan, splits, settings, kept, tell)
        start = _start(plan, config, options, source, kept, tell)
        answers = Kept(kept / "answers", Asking(settings.answer_tokens, settings.top, settings.dtype, _device(options)))
        said = {name: answers.ask(experts[name], [*own.trained, *own.held_back], tell) for name, own in splits.items()}
        lm = load(str(start), None, settings.dtype, _device(options))
        lessons = []
        for name, own in splits.items():
            every = [*own.trained, *own.held_back]
            answers.require_same_tokens(experts[name], every, lm.tokenizer)
            made = [
                Lesson(with_answer(inputs, answer.ids), answer)
                for inputs, answer in zip(encode(lm, every), said[name], strict=True)
            ]
            lessons.append(Lessons(made[: len(own.trained)], made[len(own.trained) :]))
        finish = _by_adapter if settings.way == "adapter" else _by_coefficients
        result = finish(plan, lm, lessons, splits, settings, start, out, options, source, kept, tell)
        del lm
        release()
    if work is None:
        shutil.rmtree(kept)
    return result


def _by_adapter(
    plan: MergePlan,
    lm: MLLM,
    lessons: Sequence[Lessons],
    splits: Mapping[str, Split],
    settings: Settings,
    start: Path,
    out: Path,
    options: MergeOptions,
    source: str,
    kept: Path,
    tell: Callable[[str], None],
) -> Result:
    lm.model.requires_grad_(False)
    way = AdapterWay(lm, linear_layers(lm, decoder_matrices(plan)), settings.rank, settings.seed)
    tell(f"adapter of rank {settings.rank}: {sum(p.numel() for p in way.parameters):,} numbers")
    result = train(way, lessons, settings.schedule, kept / "training.pt", _key(start, settings, splits), tell)
    with staged(out) as staging:
        if result.best:
            adapter = kept / "adapter"
            shutil.rmtree(adapter, ignore_errors=True)
            way.write(adapter)
            with_adapter(start, adapter, staging, options)
        else:
            shutil.copytree(start, staging, dirs_exist_ok=True)
        how = f"A LoRA of rank {settings.rank} on the merged model was trained, and folded in." if result.best else ""
        write_report(
            staging,
            (start.name, out.resolve().name),
            how or "The merge was not changed.",
            splits,
            asdict(settings),
            result,
        )
    return result


def _by_coefficients(
    plan: MergePlan,
    lm: MLLM,
    lessons: Sequence[Lessons],
    splits: Mapping[str, Split],
    settings: Settings,
    start: Path,
    out: Path,
    options: MergeOptions,
    source: str,
    kept: Path,
    tell: Callable[[str], None],
) -> Result:
    names = decoder_matrices(plan)
    tell(f"coefficients: {len(names)} matrices with {len(splits) + 1} each; their directions are stored")
    folder = kept / start.name.replace("start", "directions")
    dtype = str(lm.model.dtype).removeprefix("torch.")
    bases = store_bases(plan, names, folder / dtype, dtype, options.model_copy(update={"quiet": True}))
    way = CoefficientWay(lm, {in_model(lm, name): basis for name, basis in bases.items()})
    result = train(way, lessons, settings.schedule, kept / "training.pt", _key(start, settings, splits), tell)
    found = way.coefficients.detach().cpu()
    with staged(out) as staging:
        if result.best:
            text = recipe(plan, source, names, found)
            config = read_config(text, "the config with coefficients")
            require_meant(plan_merge(config, options, text), names, plan, found)
            run_multimodal_merge(config, str(staging), options.model_copy(update={"quiet": True}), text)
        else:
            shutil.copytree(start, staging, dirs_exist_ok=True)
        how = "The coefficients of the config were learnt." if result.best else "The merge was not changed."
        title = (staging if result.best else start).name
        write_report(staging, (title, out.resolve().name), how, splits, asdict(settings), result)
    return result


def _key(start: Path, settings: Settings, splits: Mapping[str, Split]) -> str:
    """Equal for trainings that are the same."""
    return hashlib.sha256(json.dumps([start.name, asdict(settings), digests(splits)]).encode()).hexdigest()


def experts_of(plan: MergePlan) -> dict[str, Expert]:
    """The experts of a merge by their names in the config, in its order."""
    found: dict[str, Expert] = {}
    for model, checkpoint in plan.inputs.checkpoints.items():
        if model == plan.config.base_model:
            continue
        files = [checkpoint.directory / file for file in checkpoint.files]
        adaptation = plan.inputs.adaptations.get(model)
        adapter = adaptation.adapter.directory if adaptation else None
        files += adaptation.adapter.files if adaptation else []
        name = name_in_config(model)
        found[name] = Expert(name, checkpoint.directory, adapter, tuple(files))
    return found


def decoder_matrices(plan: MergePlan) -> list[str]:
    """The names in memory of the language model's matrices that the merge changes."""
    return [
        tensor.name
        for tensor in plan.merged_tensors
        if isinstance(tensor.shared_action, Merge)
        and tensor.info.role is Role.LANGUAGE_MODEL
        and len(tensor.info.shape) == 2
    ]


def _start(
    plan: MergePlan,
    config: MergeConfiguration,
    options: MergeOptions,
    source: str,
    kept: Path,
    tell: Callable[[str], None],
) -> Path:
    """The directory of the merged model that the training begins with; it is merged if it is not there yet."""
    files = [
        checkpoint.directory / file for checkpoint in plan.inputs.checkpoints.values() for file in checkpoint.files
    ]
    files += [file for adaptation in plan.inputs.adaptations.values() for file in adaptation.adapter.files]
    key = hashlib.sha256(f"{digest(plan)} {fingerprint(files)} {options.random_seed}".encode()).hexdigest()[:16]
    start = kept / f"start-{key}"
    if not start.is_dir():  # a directory appears only once it is complete
        tell(f"merging by {config.merge_method}")
        run_multimodal_merge(config, str(start), options.model_copy(update={"quiet": True}), source)
    return start


def _tell_costs(
    plan: MergePlan, splits: Mapping[str, Split], settings: Settings, kept: Path, tell: Callable[[str], None]
) -> None:
    """Tell what will be used of samples, memory and disk. MergeError if the disk has too little room."""
    for name, own in splits.items():
        tell(f"{name}: {len(own.trained)} samples to train on, {len(own.held_back)} held back")
    in_memory = plan.output_bytes
    if settings.dtype != "auto":
        width = getattr(torch, settings.dtype).itemsize
        in_memory = sum(output.like.nbytes // output.like.dtype.itemsize for output in plan.outputs) * width
    on_disk = 2 * plan.output_bytes
    tell(f"memory: {size_of(in_memory)} for one model at a time, and activations; disk: {size_of(on_disk)}")
    kept.mkdir(parents=True, exist_ok=True)
    check_room(kept, on_disk)


def _device(options: MergeOptions) -> str:
    return options.device or "cpu"


@contextmanager
def _enough_memory(device: str | None) -> Iterator[None]:
    """A context that turns errors of too little memory into a MergeError that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        cause = str(error).partition(". ")[0] or "out of memory"
        raise MergeError(
            f"The memory of {device or 'cpu'} does not suffice ({cause}): lower --batch-size, --answer-tokens or the "
            "size of the media, or choose --dtype bfloat16. The same command goes on from here."
        ) from error
