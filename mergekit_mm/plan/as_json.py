"""A plan as JSON: `mergekit-mm check --json`. docs/plan-json.md describes the schema; its version is `SCHEMA`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml
from mergekit.common import ModelReference

from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.tensor_plan import Action, Average, Copy, Keep, Merge, Route, TensorPlan, short_dtype

SCHEMA = 1


def as_json(plan: MergePlan) -> dict[str, Any]:
    """The plan in types that JSON has: shapes as lists, dtypes and models by name, sizes in bytes."""
    files = plan.side_files
    return {
        "schema": SCHEMA,
        "config": yaml.safe_load(plan.config.to_yaml()),
        "merge_method": plan.config.merge_method,
        "base_model": None if plan.config.base_model is None else str(plan.config.base_model),
        "layout": str(plan.inputs.base),
        "inputs": {str(model): _input(plan, model) for model in plan.inputs.checkpoints},
        "tensors": [_tensor(tensor) for tensor in plan.tensors],
        "outputs": [
            {
                "name": output.name,
                "tensor": output.tensor,
                "piece": output.piece.value,
                **({"owner": output.owner} if output.owner else {}),
                "shape": list(output.like.shape),
                "dtype": str(plan.written_dtype(output.like)).removeprefix("torch."),
                "bytes": plan.written_bytes(output.like),
            }
            for output in plan.outputs
        ],
        "layers": None if plan.layers is None else list(plan.layers),
        "moves_rows": plan.moves_rows,
        "side_files": None
        if files is None
        else {
            "from": files.source_name,
            "copied": sorted(files.copies),
            "written": sorted(files.texts),
            "bytes": files.nbytes,
        },
        "notes": list(dict.fromkeys(plan.notes)),
        "not_used": [line.strip() for line in plan.not_used().splitlines()[1:]],
    }


def digest(plan: MergePlan) -> str:
    """A SHA-256 of the plan as JSON: equal for equal plans, in every process."""
    return hashlib.sha256(json.dumps(as_json(plan), sort_keys=True).encode()).hexdigest()


def _input(plan: MergePlan, model: ModelReference) -> dict[str, Any]:
    checkpoint = plan.inputs.checkpoints[model]
    description: dict[str, Any] = {"model_type": checkpoint.model_type, "directory": str(checkpoint.directory)}
    if model.lora:
        description["adapter"] = str(plan.inputs.adaptations[model].adapter.directory)
    return description


def _tensor(tensor: TensorPlan) -> dict[str, Any]:
    info = tensor.info
    return {
        "name": tensor.name,
        "role": info.role.value,
        "shape": list(info.shape),
        "dtype": short_dtype(info),
        "inputs": {str(model): own for model, own in tensor.inputs.items()},
        "base": None if tensor.base is None else str(tensor.base),
        **_action(tensor.action),
        "parameters": _values(tensor.parameters),
        "input_parameters": {str(model): _values(own) for model, own in tensor.input_parameters.items()},
        "reason": tensor.reason,
    }


def _action(action: Action) -> dict[str, Any]:
    match action:
        case Keep(model):
            return {"action": "keep", "model": str(model)}
        case Average():
            return {"action": "average"}
        case Merge(method, in_core):
            return {"action": "merge", "method": method, **({"space": "core"} if in_core else {})}
        case Copy(of):
            return {"action": "copy", "of": of}
        case Route(shared, owners, rank):
            donors = {owner: str(donor) for owner, donor in owners}
            return {"action": "route", "shared": _action(shared), "owners": donors, "rank": rank}


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    json_types = int | float | str | None
    return {name: value if isinstance(value, json_types) else str(value) for name, value in parameters.items()}
