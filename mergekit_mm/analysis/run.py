"""From a merge config to what can be said of its experts: one group of tensors in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_uppercase

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.analysis.cost import UNASKED, cost_of, in_words
from mergekit_mm.analysis.groups import Figures
from mergekit_mm.analysis.measure import Measures, measure
from mergekit_mm.analysis.methods import DEFAULT, Method
from mergekit_mm.analysis.places import Place, place_of
from mergekit_mm.analysis.result import Analysis, Expert
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.execution.values import values
from mergekit_mm.merge import enough_memory, plan_merge, require_device
from mergekit_mm.plan.inputs import name_in_config
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan
from mergekit_mm.plan.tensor_plan import Average, Copy, Keep, Merge, Route, TensorPlan
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tune.candidates import parse_variant

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is looked at. layers: so many, evenly spaced, of each stack; None for all.

    spectra, losses: whether; None for those that cost no more than some minutes. methods: those whose losses are
    wanted, as `METHOD[:PARAMETER=VALUE]...`, which asks for losses; none for the default ones.
    """

    layers: int | None = None
    spectra: bool | None = None
    losses: bool | None = None
    methods: Sequence[str] = ()


def inspect(
    config: MergeConfiguration, source: str | None, options: MergeOptions, settings: Settings, tell: Tell
) -> Analysis:
    """Look at the task vectors of a merge's experts.

    source: the text of the config. tell: takes a line on what is left out for its cost, and what it would take.

    Raises:
        MergeError: the merge would be refused, it has no base model or no expert, or a method has no losses here.
    """
    require_device(options)
    if config.base_model is None:
        raise MergeError(
            "What experts changed is measured from a base model, and this config has none: add `base_model: <model>`; "
            "if the method takes none, in a copy of the config with `merge_method: task_arithmetic`."
        )
    plan = plan_merge(config, options, source)
    base = plan.config.base_model
    experts = [model for model in plan.inputs.checkpoints if model != base]
    all_adapters = all(model.lora and plan.inputs.plain(model) == base for model in experts)
    given = dict.fromkeys(settings.methods or DEFAULT)
    methods = [Method.of(parse_variant(each), all_adapters) for each in given]
    if len(experts) < 2:
        methods = []  # one expert is merged by itself, without any interference
    wanted, not_measured = _wanted(plan, settings.layers)
    if not wanted:
        raise MergeError("No tensor of these inputs is one that an expert shares with the base model.")
    cost = cost_of(plan, [tensor for tensor in wanted if _is_solved(tensor)], methods)
    with_spectra = _decided(settings.spectra, cost.spectra, "spectra", tell)
    asks = True if settings.methods and settings.losses is None else settings.losses
    losses = methods if _decided(asks, cost.losses, "losses", tell) else []
    found = _measured(plan, wanted, options, with_spectra, losses)
    if len(found) < len(wanted):
        not_measured["no numbers that a merge changes"] += len(wanted) - len(found)
    files = plan.side_files
    on_files = [] if files is None else [*files.warnings, *files.notes]
    return Analysis(
        headline=plan.report().splitlines()[0],
        is_omni=isinstance(plan, OmniPlan),
        base=name_in_config(base),
        method=config.merge_method,
        experts=[_expert(plan, model, number) for number, model in enumerate(experts)],
        tensors=_figures(wanted, found, experts),
        not_measured=dict(not_measured),
        layers=settings.layers,
        cost=cost,
        has_spectra=with_spectra,
        methods=[method.label for method in losses],
        side_files=on_files,
        notes=[note for note in dict.fromkeys(plan.notes) if note not in on_files],
    )


def _measured(
    plan: MergePlan,
    tensors: Sequence[TensorPlan],
    options: MergeOptions,
    with_spectra: bool,
    methods: Sequence[Method],
) -> dict[str, Measures]:
    """What was measured of each tensor; those that hold no numbers that a merge changes are left out."""
    compiler = Compiler(plan, options)
    tasks = {}
    for tensor in tensors:
        is_solved = _is_solved(tensor)
        tasks[tensor.name] = compiler.measured(
            tensor,
            partial(
                measure,
                is_matrix=_is_matrix(tensor),
                with_spectra=with_spectra and is_solved,
                methods=methods if is_solved else (),
            ),
        )
    with system_errors(), enough_memory(options.device):
        return {name: measures for name, measures in values(compiler, tasks) if measures is not None}


def _figures(
    tensors: Sequence[TensorPlan], found: Mapping[str, Measures], experts: Sequence[ModelReference]
) -> list[Figures]:
    places = {model: number for number, model in enumerate(experts)}
    return [
        Figures(
            name=tensor.name,
            role=tensor.info.role,
            place=place_of(tensor.name),
            shape=tuple(tensor.info.shape),
            action=_action(tensor),
            experts=tuple(places[model] for model in tensor.experts),
            measures=found[tensor.name],
        )
        for tensor in tensors
        if tensor.name in found
    ]


def _wanted(plan: MergePlan, layers: int | None) -> tuple[list[TensorPlan], Counter[str]]:
    """The tensors to look at, and why others are not looked at."""
    wanted: list[TensorPlan] = []
    left_out: Counter[str] = Counter()
    last: dict[str, int] = {}
    for tensor in plan.merged_tensors:
        place = place_of(tensor.name)
        if place.layer is not None:
            last[place.stack] = max(place.layer, last.get(place.stack, 0))
    for tensor in plan.merged_tensors:
        if tensor.base not in tensor.inputs:
            left_out["the base model does not have them"] += 1
        elif tensor.base != plan.config.base_model:
            left_out["the config names another base for them"] += 1
        elif not tensor.experts:
            left_out["no expert has them"] += 1
        elif not tensor.info.dtype.is_floating_point or 0 in tensor.info.shape:
            left_out["no numbers that a merge changes"] += 1
        elif not _is_sampled(place_of(tensor.name), last, layers):
            left_out["layers that were not asked for"] += 1
        else:
            wanted.append(tensor)
    return wanted, left_out


def _is_sampled(place: Place, last: dict[str, int], layers: int | None) -> bool:
    """Whether a tensor is outside of layers, or in one of so many evenly spaced ones, first and last included."""
    if layers is None or place.layer is None:
        return True
    end = last[place.stack]
    if layers == 1:
        return place.layer == end // 2
    return place.layer in {round(at * end / (layers - 1)) for at in range(layers)}


def _is_matrix(tensor: TensorPlan) -> bool:
    """Whether a merge method sees the tensor as a matrix, or as a stack of matrices."""
    return len(tensor.info.shape) in (2, 3) and not tensor.info.is_convolution


def _is_solved(tensor: TensorPlan) -> bool:
    """Whether it is a matrix that the merge method merges, for which spectra and losses mean something.

    Embeddings and heads are left out: their rows are tokens rather than outputs, and in float64 each takes gigabytes.
    """
    is_merged = isinstance(tensor.shared_action, Merge)
    return is_merged and _is_matrix(tensor) and tensor.info.vocabulary_axis is None


def _decided(asked: bool | None, operations: float, what: str, tell: Tell) -> bool:
    """Whether spectra or losses are computed; tells what they cost if that is much."""
    if asked is not None or operations <= UNASKED:
        if asked and operations > UNASKED:
            tell(f"{what.capitalize()}: {in_words(operations)}.")
        return operations <= UNASKED if asked is None else asked
    tell(
        f"No {what}: {in_words(operations)}. `--{what}` computes them all the same; `--layers 4` looks at four layers."
    )
    return False


def _action(tensor: TensorPlan) -> str:
    match tensor.action:
        case Keep(model) if model == tensor.base:
            return "keep"
        case Keep():
            return "take"
        case Average():
            return "average"
        case Route():
            return "route"
        case Copy():
            return "copy"
        case _:
            return "merge"


def _expert(plan: MergePlan, model: ModelReference, number: int) -> Expert:
    label = ascii_uppercase[number] if number < len(ascii_uppercase) else f"E{number + 1}"
    is_adapter = model.lora is not None and plan.inputs.plain(model) == plan.config.base_model
    kind = plan.inputs.checkpoints[model].model_type
    return Expert(label, name_in_config(model), "adapter" if is_adapter else "full", kind)
