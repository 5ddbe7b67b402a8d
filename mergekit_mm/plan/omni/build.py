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
from mergekit_mm.plan.omni.composition import asks_for_damc, donor_parameters
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

    modules: of the omni model's tensors. notes: those on the inputs.

    Raises:
        MergeError: the donors do not compose, or the config asks for something that no omni model has.
    """
    own_notes = _require_whole(config, inputs)
    policy_config = _without_donor_parameters(config, inputs)
    definitions = module_definitions(policy_config, modules, inputs.base)
    unlisted = unlisted_modules(config, modules)
    if unlisted:
        own_notes.append(f"Not listed under `modules:`, so kept as their donors have them: {', '.join(unlisted)}.")
    decisions = Decisions.of(policy_config, inputs, unlisted)
    tensors = decide_all(decisions, modules, definitions)
    if inputs.problems:
        raise MergeError("These inputs cannot be merged:\n" + "\n".join(inputs.problems))
    own_notes += decisions.require_defined()
    rows = inputs.composition.vocabulary.size
    routed: dict[str, Any] = {}  # as in the omni config
    if asks_for_damc(config):
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
        notes=(*notes, *own_notes),
        inputs=inputs,
        routed=routed,
    )


def _without_donor_parameters(config: MergeConfiguration, inputs: OmniInputs) -> MergeConfiguration:
    """The config without the parameters whose value is a donor, so that the rest are policies (see `composition`)."""
    donors = donor_parameters(config, inputs.checkpoints)
    parameters = {name: value for name, value in (config.parameters or {}).items() if name not in donors}
    return config.model_copy(update={"parameters": parameters})


def _require_whole(config: MergeConfiguration, inputs: OmniInputs) -> list[str]:
    """Check that the inputs' tensors are all those of the model that the donors make; returns notes on its processor.

    Raises:
        MergeError: a tensor of that model is missing, or has no place in it; or its config cannot be made.
    """
    if SIDE_FILES in (config.parameters or {}):
        raise MergeError(f"{SIDE_FILES}: not for an omni model: it has the processors of all its donors.")
    with refused_by("mergekit_mm.omni.configuration", about="These models do not compose: "):
        omni_config, expected = omni_model(inputs.composition, inputs.base_checkpoint.config)
    missing, extra = expected.keys() - inputs.tensors.keys(), inputs.tensors.keys() - expected.keys()
    if missing or extra:
        raise MergeError(
            f"The tensors of these donors are not those of an omni model: missing {some(missing) or 'none'}; "
            f"without a place {some(extra) or 'none'}."
        )
    _, notes = omni_processor(inputs.composition, omni_config)
    for note in notes:
        LOG.warning(note)
    return notes
