"""The plan of an omni model: the language models of its donors merged, the towers put around the result."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit.config import MergeConfiguration

from mergekit_mm.checkpoints.listing import some
from mergekit_mm.errors import MergeError, refused_by
from mergekit_mm.plan.decisions import Decisions, decide_all
from mergekit_mm.plan.inputs import OmniInputs
from mergekit_mm.plan.merge_plan import OmniPlan
from mergekit_mm.plan.modules import Module, module_definitions, moved_layers, unlisted_modules
from mergekit_mm.plan.omni.composition import choices, is_decoupled
from mergekit_mm.plan.omni.damc import Router, routed_outputs
from mergekit_mm.plan.omni.model import omni_model
from mergekit_mm.plan.omni.processor import omni_processor
from mergekit_mm.plan.outputs import outputs_in_memory
from mergekit_mm.plan.parameters import SIDE_FILES

LOG = logging.getLogger(__name__)


def build_omni_plan(
    config: MergeConfiguration,
    inputs: OmniInputs,
    modules: Mapping[str, Module],
    notes: Sequence[str],
) -> OmniPlan:
    """The plan of an omni model, without its side files.

    modules: of the omni model's tensors. notes: what there is to say of the inputs.

    Raises:
        MergeError: the donors do not compose, or the config asks for what no omni model has.
    """
    told = _require_whole(config, inputs)
    policies = _without_choices(config, inputs)
    definitions = module_definitions(policies, modules, inputs.base)
    unlisted = unlisted_modules(config, modules)
    if unlisted:
        told.append(f"Not listed under `modules:`, so kept as their donors have them: {', '.join(unlisted)}.")
    decisions = Decisions.of(policies, inputs, unlisted)
    tensors = decide_all(decisions, modules, definitions)
    if inputs.problems:
        raise MergeError("These inputs cannot be merged:\n" + "\n".join(inputs.problems))
    told += decisions.require_defined()
    rows, routed = inputs.composition.vocabulary.size, dict[str, Any]()
    if is_decoupled(config):
        stack = modules["language_model"].stack
        tensors = Router(inputs, config, stack).routed(tensors)
        outputs, routed = routed_outputs(outputs_in_memory(tensors, rows), {t.name: t for t in tensors}, stack)
    else:
        outputs = list(outputs_in_memory(tensors, rows))
    return OmniPlan(
        config=config,
        tensors=tuple(tensors),
        outputs=tuple(outputs),
        layers=moved_layers(modules, definitions),
        moves_rows=True,
        notes=(*notes, *told),
        inputs=inputs,
        routed=routed,
    )


def _without_choices(config: MergeConfiguration, inputs: OmniInputs) -> MergeConfiguration:
    """The config without the parameters that choose donors, which are no policies."""
    chosen = choices(config, inputs.checkpoints)
    parameters = {k: v for k, v in (config.parameters or {}).items() if k not in chosen}
    return config.model_copy(update={"parameters": parameters})


def _require_whole(config: MergeConfiguration, inputs: OmniInputs) -> list[str]:
    """Notes on the processor, once the tensors are seen to be those of the model that the donors make together.

    Raises:
        MergeError: they are not.
    """
    if SIDE_FILES in (config.parameters or {}):
        raise MergeError(f"{SIDE_FILES}: not for an omni model: it has the processors of all its donors.")
    with refused_by("mergekit_mm.omni.configuration", about="These models do not compose: "):
        composed, expected = omni_model(inputs.composition, inputs.checkpoints, inputs.base_checkpoint.config)
    missing, extra = expected.keys() - inputs.tensors.keys(), inputs.tensors.keys() - expected.keys()
    if missing or extra:
        raise MergeError(
            f"The tensors of these donors are not those of an omni model: missing {some(missing) or 'none'}; "
            f"without a place {some(extra) or 'none'}."
        )
    notes = list(omni_processor(inputs.composition, inputs.checkpoints, composed)[1])
    for note in notes:
        LOG.warning(note)
    return notes
