"""From a merge config to its plan: inputs are opened and matched, and every tensor is decided."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from mergekit import merge_methods
from mergekit.config import ConfigReader, MergeConfiguration, OutputModuleDefinition
from mergekit.merge_methods import BasePolicy
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.adapters.embedded import with_embedded_adapters
from mergekit_mm.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.decisions import Decisions, decide_all
from mergekit_mm.plan.inputs import Inputs, OmniInputs
from mergekit_mm.plan.keys import unknown_keys
from mergekit_mm.plan.merge_plan import DTYPES, MergePlan
from mergekit_mm.plan.modules import module_definitions, modules_of, moved_layers, unlisted_modules
from mergekit_mm.plan.omni.build import build_omni_plan
from mergekit_mm.plan.omni.composition import COMPOSITION, DAMC, HOST, OWNER_PARAMETER, asks_for_damc
from mergekit_mm.plan.opening import models_in_order, open_inputs
from mergekit_mm.plan.outputs import outputs_like_base
from mergekit_mm.plan.parameters import (
    ignored,
    unknown_method,
    unknown_modules,
    unread_parameters,
    wrong_parameters,
)
from mergekit_mm.plan.policies import Policy, policy_of
from mergekit_mm.plan.side_files import plan_side_files
from mergekit_mm.plan.tensor_plan import Copy, TensorPlan
from mergekit_mm.plan.unchanged import unchanged

LOG = logging.getLogger(__name__)


def build_plan(config: MergeConfiguration, options: MergeOptions, source: str | None = None) -> MergePlan:
    """The plan of a merge, without its side files. Headers, small files and samples of values are read.

    source: the text that the config was read from; with it, the keys of the config are checked too.

    Raises:
        MergeError: an input is damaged, the inputs do not fit each other, or the config names something that does not
            exist.
    """
    _require_config(config, source)
    donor_parameters = (*OWNER_PARAMETER.values(), HOST)
    config, adapter_notes = with_embedded_adapters(config, models_in_order(config), options, donor_parameters)
    inputs = open_inputs(config, options)
    notes = [*adapter_notes, *inputs.notes, *unchanged(inputs, config.base_model is not None), *_headers_only(inputs)]
    modules = modules_of(inputs.tensors.values())
    if wrong := list(unknown_modules(config, list(modules), inputs.base, inputs.checkpoints)):
        raise MergeError("\n".join(wrong))
    if unread := unread_parameters(config):
        notes.append(f"{config.merge_method} does not read the parameters {', '.join(unread)}.")
    decouples = asks_for_damc(config)
    if isinstance(inputs, OmniInputs):
        return build_omni_plan(config, inputs, modules, notes)
    if decouples:
        raise MergeError(
            f"parameter {COMPOSITION}: {DAMC} is for omni models, and these inputs are not multimodal models of "
            "different architectures."
        )
    definitions = module_definitions(config, modules, inputs.base)
    unlisted = unlisted_modules(config, modules)
    if unlisted:
        notes.append(f"Not listed under `modules:`, so kept as in {inputs.base}: {', '.join(unlisted)}.")
    decisions = Decisions.of(config, inputs, unlisted)
    tensors = decide_all(decisions, modules, definitions)
    notes += _judge_matches(config, inputs, decisions, definitions)
    notes += decisions.require_defined()
    by_name = {tensor.name: tensor for tensor in [*tensors, *_copies(inputs, tensors)]}
    layers = moved_layers(modules, definitions)
    outputs = outputs_like_base(inputs.base_checkpoint, by_name, modules, layers is not None)
    moves_rows = bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)
    return MergePlan(
        config=config,
        tensors=tuple(by_name.values()),
        outputs=tuple(outputs),
        layers=layers,
        moves_rows=moves_rows,
        notes=tuple(notes),
        inputs=inputs,
    )


def with_side_files(plan: MergePlan, options: MergeOptions) -> MergePlan:
    """A plan with the files that the output gets beside its weights, and notes on them.

    Raises:
        MergeError: files that the output needs are damaged, or the config takes them from a model that has none.
    """
    side_files = plan_side_files(plan.inputs, plan.config, options)
    for warning in side_files.warnings:
        LOG.warning(warning)
    return replace(plan, side_files=side_files, notes=(*plan.notes, *side_files.warnings, *side_files.notes))


def _require_config(config: MergeConfiguration, source: str | None) -> None:
    """MergeError with all problems that a config has by itself, before any input is looked for."""
    problems = [*(unknown_keys(source) if source is not None else ()), *unknown_method(config.merge_method)]
    if not (config.models or config.slices or config.modules):
        problems.append("The merge config lists no models.")
    for name in ("dtype", "out_dtype"):
        if (value := getattr(config, name)) not in (None, *DTYPES):
            problems.append(f"{name}: {value!r} will not do; choose {' | '.join(DTYPES)}.")
    if config.merge_method in {method.spec.name for method in merge_methods.registered_methods()}:
        needs_base = merge_methods.get(config.merge_method).spec.contract.base is BasePolicy.REQUIRED
        if needs_base and not config.base_model:
            problems.append(
                f"merge_method {config.merge_method} needs a base model: add `base_model: <model>` to the config."
            )
        problems += wrong_parameters(config)
    if problems:
        raise MergeError("\n".join(dict.fromkeys(problems)))


def _headers_only(inputs: Inputs) -> Iterator[str]:
    """A note on the models of the hub whose headers alone were fetched, as checks of values are left to the merge."""
    if models := dict.fromkeys(c.name for c in inputs.checkpoints.values() if c.is_headers_only):
        yield (
            f"Only the headers of {', '.join(models)} were read. Whether their values are those of another input, and "
            "whether tensors are equal that have to be (ties, integers), the merge will find out."
        )


def _judge_matches(
    config: MergeConfiguration,
    inputs: Inputs,
    decisions: Decisions,
    definitions: Mapping[str, OutputModuleDefinition],
) -> list[str]:
    """Judge how the inputs fit the base, now that it is decided which tensors the merge asks each input for.

    Returns notes on tensors that do not fit and that the merge does not ask for.

    Raises:
        MergeError: tensors that the merge asks for do not fit; all of them are listed.
    """
    problems, notes = list(inputs.problems), list[str]()
    patterns = ignored(config)

    def reason_to_leave_out(checkpoint: Checkpoint, info: TensorInfo) -> str | None:
        if (by_pattern := patterns.reason(checkpoint, info.name)) is not None:
            return by_pattern
        kept = _is_kept(config, info, decisions.unlisted, definitions)
        return f"{info.role.value} is kept as in {inputs.base}" if kept else None

    for model, matches in inputs.matches.items():
        for match in matches:
            match.judge(decisions.asked[model].__contains__, partial(reason_to_leave_out, match.other))
            problems += match.problems
            notes += match.notes
    if problems:
        raise MergeError("These inputs cannot be merged:\n" + "\n".join(problems))
    return notes


def _is_kept(
    config: MergeConfiguration,
    info: TensorInfo,
    unlisted: Sequence[str],
    definitions: Mapping[str, OutputModuleDefinition],
) -> bool:
    """Whether the config keeps the role of a tensor at the base; the base need not have this tensor itself."""
    module = info.role.module
    if module in unlisted or (module not in definitions and not config.models):
        return True
    reader = ConfigReader(config=config, t=0, module=definitions.get(module))
    return policy_of(info.role, info.name, config.merge_method, reader).policy is Policy.BASE


def _copies(inputs: Inputs, tensors: Iterable[TensorPlan]) -> Iterator[TensorPlan]:
    """Plans of the second copies of tied tensors, for a base that stores both."""
    planned = {tensor.name: tensor for tensor in tensors}
    for name, original in inputs.copies.items():
        if (plan := planned.get(original)) is not None:
            yield TensorPlan(name, inputs.base_checkpoint.tensors[name], plan.inputs, Copy(original), plan.base)
