"""Whether transformers would load exactly what a merge plans, before it is run, and what it has written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_mm.checkpoints.checkpoint import assemble_checkpoint, require_complete
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.errors import MergeError
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.output.config_json import output_config
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan
from mergekit_mm.plan.omni.model import omni_model


def verify_planned(plan: MergePlan, rows: int | None) -> None:
    """Build the config that the merge will end in, and see that its tensors are those of a model.

    rows: as of `planned_tensors`.

    Raises:
        MergeError: they are not.
    """
    if isinstance(plan, OmniPlan):
        verified_omni(plan, planned_tensors(plan, rows))
    else:
        verified_config(plan, planned_tensors(plan, rows), Path(), rows)


def planned_tensors(plan: MergePlan, rows: int | None) -> dict[str, DiskTensor]:
    """What the merge will write: name on disk -> shape and dtype.

    rows: of the embeddings, where they change and the plan does not know how many there will be; else None.
    """
    found = {name: replace(like, name=name, dtype=plan.written_dtype(like)) for name, like in plan.layout.items()}
    if rows is None:
        return found
    base = plan.inputs.base_checkpoint
    by_token = [name for name, info in base.tensors.items() if info.vocabulary_axis is not None]
    resized = {name for tensor in by_token for name in base.group_of[tensor].disk}
    return {n: replace(t, shape=(rows, *t.shape[1:])) if n in resized else t for n, t in found.items()}


def verified_config(
    plan: MergePlan, tensors: Mapping[str, DiskTensor], directory: Path, rows: int | None
) -> dict[str, Any]:
    """The output's `config.json`, once `tensors` are seen to be those of the model that it describes.

    directory: where the tensors are, or will be. rows: as of `planned_tensors`.

    Raises:
        MergeError: transformers cannot make a model of this config; or a tensor is missing, unexpected or of another
            shape than in that model.
    """
    base = plan.inputs.base_checkpoint
    layers = plan.layers
    config = output_config(base.config, tensors, layers, rows)
    try:
        model = assemble_checkpoint("The merged model", directory, config, tensors)
        require_complete(model)
        known = {name for name, like in plan.layout.items() if like.name in base.unknown}
        if extra := sorted(model.unknown - known):
            raise MergeError(f"The merged model would have no place for {len(extra)} tensors: {extra[:5]}.")
    except MergeError as error:
        if layers is None:
            raise
        listed = list(layers)
        raise MergeError(f"Layers {listed} of {base.name}, which the slices ask for, make no model. {error}") from error
    return config


def verified_omni(plan: OmniPlan, tensors: Mapping[str, DiskTensor]) -> OmniConfig:
    """The config of an omni model, once `tensors` are seen to be those of the model that it describes.

    Raises:
        MergeError: the tensors are not those of that model, by names or shapes.
    """
    omni, host = plan.inputs.composition, plan.inputs.base_checkpoint
    own = output_config(host.config, tensors, plan.layers, omni.vocabulary.size)
    config, expected = omni_model(omni, plan.inputs.checkpoints, own, plan.routed)
    held = {name: tensor.shape for name, tensor in tensors.items()}
    missing = [name for name in expected if name not in held]
    extra = [name for name in held if name not in expected]
    wrong = [f"{n}: {held[n]}, not {shape}" for n, shape in expected.items() if n in held and held[n] != shape]
    if missing or extra or wrong:
        raise MergeError(
            f"The composed weights are not those of their model: {len(missing)} missing {missing[:4]}, "
            f"{len(extra)} without a place {extra[:4]}, {len(wrong)} of another shape {wrong[:4]}."
        )
    return config


def require_as_planned(planned: Mapping[str, DiskTensor], written: Mapping[str, DiskTensor]) -> None:
    """MergeError if what was written has other names or shapes than what was planned."""
    wanted, found = ({name: tensor.shape for name, tensor in held.items()} for held in (planned, written))
    if differing := sorted(name for name in wanted.keys() | found if wanted.get(name) != found.get(name)):
        raise MergeError(f"The merge wrote other tensors than planned: {differing[:5]}.")
