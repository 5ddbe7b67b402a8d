"""The check that transformers will load exactly the tensors of a merge: first the planned, then the written ones."""

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


def verify_planned(plan: MergePlan, tensors: Mapping[str, DiskTensor], rows: int | None) -> None:
    """Make the config of the output, and check that the planned tensors are those of the model that it describes.

    tensors: those of `planned_tensors`, with the same `rows`.

    Raises:
        MergeError: as for `verified_config` and `verified_omni`.
    """
    if isinstance(plan, OmniPlan):
        verified_omni(plan, tensors)
    else:
        verified_config(plan, tensors, Path(), rows)


def planned_tensors(plan: MergePlan, rows: int | None) -> dict[str, DiskTensor]:
    """Name on disk -> shape and dtype of every tensor that the merge will write.

    rows: rows of the embeddings, if the merge changes the vocabulary in a way that the plan does not know; else None.
    """
    planned: dict[str, DiskTensor] = {}
    for output in plan.outputs:
        like = output.like
        shape = like.shape
        if rows is not None and plan[output.tensor].info.vocabulary_axis is not None:
            shape = (rows, *shape[1:])
        planned[output.name] = replace(like, name=output.name, shape=shape, dtype=plan.written_dtype(like))
    return planned


def verified_config(
    plan: MergePlan, tensors: Mapping[str, DiskTensor], directory: Path, rows: int | None
) -> dict[str, Any]:
    """The output's `config.json`, after a check that `tensors` are those of the model that it describes.

    directory: the directory of the tensors, in which messages name files. rows: as for `planned_tensors`.

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
        unknown_in_base = {output.name for output in plan.outputs if output.like.name in base.unknown}
        if extra := sorted(model.unknown - unknown_in_base):
            raise MergeError(f"The merged model would have no place for {len(extra)} tensors: {extra[:5]}.")
    except MergeError as error:
        if layers is None:
            raise
        listed = list(layers)
        raise MergeError(f"Layers {listed} of {base.name}, which the slices ask for, make no model. {error}") from error
    return config


def verified_omni(plan: OmniPlan, tensors: Mapping[str, DiskTensor]) -> OmniConfig:
    """The config of an omni model, after a check that `tensors` are those of the model that it describes.

    Raises:
        MergeError: the tensors are not those of that model, by names or shapes.
    """
    omni, host = plan.inputs.composition, plan.inputs.base_checkpoint
    host_config = output_config(host.config, tensors, plan.layers, omni.vocabulary.size)
    config, expected = omni_model(omni, host_config, plan.routed)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    wrong = [f"{n}: {shapes[n]}, not {shape}" for n, shape in expected.items() if n in shapes and shapes[n] != shape]
    if missing or extra or wrong:
        raise MergeError(
            f"The composed weights are not those of their model: {len(missing)} missing {missing[:4]}, "
            f"{len(extra)} without a place {extra[:4]}, {len(wrong)} of another shape {wrong[:4]}."
        )
    return config


def require_as_planned(planned: Mapping[str, DiskTensor], written: Mapping[str, DiskTensor]) -> None:
    """MergeError if the written tensors have other names or shapes than the planned ones."""
    shapes, written_shapes = ({name: t.shape for name, t in tensors.items()} for tensors in (planned, written))
    names = shapes.keys() | written_shapes.keys()
    if differing := sorted(name for name in names if shapes.get(name) != written_shapes.get(name)):
        raise MergeError(f"The merge wrote other tensors than planned: {differing[:5]}.")
