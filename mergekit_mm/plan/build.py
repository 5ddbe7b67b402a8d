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
from mergekit_mm.plan.inputs import Inputs, OmniInputs, models_in_order, open_inputs
from mergekit_mm.plan.keys import check_keys
from mergekit_mm.plan.merge_plan import DTYPES, MergePlan
from mergekit_mm.plan.modules import module_definitions, modules_of, moved_layers, unlisted_modules
from mergekit_mm.plan.omni.build import build_omni_plan
from mergekit_mm.plan.omni.composition import CHOICE, COMPOSITION, DAMC, HOST, is_decoupled
from mergekit_mm.plan.outputs import outputs_like_base
from mergekit_mm.plan.parameters import (
    check_modules,
    check_parameters,
    ignored,
    require_known_method,
    unread_parameters,
)
from mergekit_mm.plan.policies import Policy, policy_of
from mergekit_mm.plan.side_files import plan_side_files
from mergekit_mm.plan.tensor_plan import Copy, TensorPlan
from mergekit_mm.plan.unchanged import unchanged

LOG = logging.getLogger(__name__)


def build_plan(config: MergeConfiguration, options: MergeOptions, source: str | None = None) -> MergePlan:
    """The plan of a merge, without its side files: headers, small files and samples of values are read.

    source: the text that the config was read from, where there is one; its keys are then checked too.

    Raises:
        MergeError: an input is damaged, the inputs do not fit each other, or the config asks for what does not exist.
    """
    if source is not None:
        check_keys(source)
    _require_config(config)
    config, embedded = with_embedded_adapters(config, models_in_order(config), options, (*CHOICE.values(), HOST))
    inputs = open_inputs(config, options)
    notes = [*embedded, *inputs.notes, *unchanged(inputs, config.base_model is not None), *_headers_only(inputs)]
    modules = modules_of(inputs.tensors.values())
    check_parameters(config)
    check_modules(config, list(modules), inputs.base, inputs.checkpoints)
    if unread := unread_parameters(config):
        notes.append(f"{config.merge_method} does not read the parameters {', '.join(unread)}.")
    decouples = is_decoupled(config)
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
    notes += _judge(config, inputs, decisions, definitions)
    notes += decisions.require_defined()
    made = {tensor.name: tensor for tensor in [*tensors, *_copies(inputs, tensors)]}
    layers = moved_layers(modules, definitions)
    outputs = outputs_like_base(inputs.base_checkpoint, made, modules, layers is not None)
    moves_rows = bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)
    return MergePlan(
        config=config,
        tensors=tuple(made.values()),
        outputs=tuple(outputs),
        layers=layers,
        moves_rows=moves_rows,
        notes=tuple(notes),
        inputs=inputs,
    )


def with_side_files(plan: MergePlan, options: MergeOptions) -> MergePlan:
    """A plan with the files that the output gets beside its weights, and notes on them.

    Raises:
        MergeError: files that the output needs are damaged, or the config takes them from where there are none.
    """
    found = plan_side_files(plan.inputs, plan.config, options)
    for warning in found.warnings:
        LOG.warning(warning)
    return replace(plan, side_files=found, notes=(*plan.notes, *found.warnings, *found.notes))


def _require_config(config: MergeConfiguration) -> None:
    if not (config.models or config.slices or config.modules):
        raise MergeError("The merge config lists no models.")
    require_known_method(config.merge_method)
    if merge_methods.get(config.merge_method).spec.contract.base is BasePolicy.REQUIRED and not config.base_model:
        raise MergeError(
            f"merge_method {config.merge_method} needs a base model: add `base_model: <model>` to the config."
        )
    for name in ("dtype", "out_dtype"):
        if (value := getattr(config, name)) not in (None, *DTYPES):
            raise MergeError(f"{name}: {value!r} will not do; choose {' | '.join(DTYPES)}.")


def _headers_only(inputs: Inputs) -> Iterator[str]:
    """A note on the models of the hub whose values were not fetched, and on what is left to the merge by that."""
    if read := dict.fromkeys(c.name for c in inputs.checkpoints.values() if c.is_headers_only):
        yield (
            f"Only the headers of {', '.join(read)} were read. Whether their values are those of another input, and "
            "whether tensors are equal that have to be (ties, integers), the merge will find out."
        )


def _judge(
    config: MergeConfiguration,
    inputs: Inputs,
    decisions: Decisions,
    definitions: Mapping[str, OutputModuleDefinition],
) -> list[str]:
    """Notes on what of the inputs does not fit the base where the merge does not ask for it.

    Raises:
        MergeError: listing everything that does not fit and that the merge asks for.
    """
    problems, notes = list(inputs.problems), list[str]()
    patterns = ignored(config)

    def leaves_out(checkpoint: Checkpoint, info: TensorInfo) -> str | None:
        if (named := patterns.reason(checkpoint, info.name)) is not None:
            return named
        kept = _is_kept(config, info, decisions.unlisted, definitions)
        return f"{info.role.value} is kept as in {inputs.base}" if kept else None

    for model, matches in inputs.matches.items():
        for match in matches:
            match.judge(decisions.asked[model].__contains__, partial(leaves_out, match.other))
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
    """Whether the config keeps tensors like this one, which the base does not have, as in the base."""
    module = info.role.module
    if module in unlisted or (module not in definitions and not config.models):
        return True
    reader = ConfigReader(config=config, t=0, module=definitions.get(module))
    return policy_of(info.role, info.name, config.merge_method, reader).policy is Policy.BASE


def _copies(inputs: Inputs, tensors: Iterable[TensorPlan]) -> Iterator[TensorPlan]:
    """Plans of the tensors that the base stores beside those it ties them to."""
    made = {tensor.name: tensor for tensor in tensors}
    for name, first in inputs.copies.items():
        if first in made:
            info = replace(inputs.base_checkpoint.tensors[name])
            yield TensorPlan(name, info, made[first].inputs, Copy(first), made[first].base)
