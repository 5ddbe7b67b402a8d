"""An analysis as JSON: `mergekit-mm inspect CONFIG --json`. docs/inspect-json.md has the schema."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mergekit_mm.analysis.advice import advise
from mergekit_mm.analysis.groups import Figures, Group
from mergekit_mm.analysis.outliers import outliers
from mergekit_mm.analysis.result import Analysis
from mergekit_mm.numerics.interaction import Interaction

SCHEMA = 1


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis in types that JSON has. What is not known is null; lists over experts are in the experts' order."""
    return {
        "schema": SCHEMA,
        "base_model": analysis.base,
        "merge_method": analysis.method,
        "experts": [vars(expert) for expert in analysis.experts],
        "looked_at": {
            "tensors": len(analysis.tensors),
            "layers": analysis.layers,
            "spectra": analysis.has_spectra,
            "methods": list(analysis.methods),
            "not_measured": dict(analysis.not_measured),
            "operations": {"spectra": analysis.cost.spectra, "losses": analysis.cost.losses},
        },
        "merged": _group(analysis.merged),
        "roles": {role.value: _group(group) for role, group in analysis.by_role.items()},
        "parts": {
            role.value: {part: _group(group) for part, group in analysis.by_part(role).items()}
            for role in analysis.by_role
        },
        "layers": {
            stack: {str(layer): _group(group) for layer, group in layers.items()}
            for stack, layers in analysis.by_layer.items()
        },
        "tensors": [_tensor(tensor) for tensor in analysis.tensors],
        "outliers": [
            {"tensor": each.tensor.name, "expert": each.expert, "drift": each.drift, "median": each.median}
            for each in outliers(analysis.tensors, len(analysis.experts))
        ],
        "side_files": list(analysis.side_files),
        "notes": list(analysis.notes),
        "advice": [vars(advice) for advice in advise(analysis)],
    }


def _group(group: Group) -> dict[str, Any]:
    outputs, chance_of_outputs = group.overlap("outputs")
    inputs, chance_of_inputs = group.overlap("inputs")
    made: dict[str, Any] = {
        "tensors": len(group.tensors),
        "norm": group.norms,
        "drift": group.drift,
        "cosine": group.cosine,
        "equal_signs": group.signs,
        "effective_rank": group.mean_of_spectra("effective"),
        "stable_rank": group.mean_of_spectra("stable"),
        "rank_of_99_percent": group.mean_of_spectra("most"),
        "kept_by_optmerge": group.kept,
        "common_outputs": outputs,
        "common_outputs_by_chance": chance_of_outputs,
        "common_inputs": inputs,
        "common_inputs_by_chance": chance_of_inputs,
    }
    known = {name: _known(value) for name, value in made.items()}
    return {**known, "losses": dict(_losses(group.losses))}


def _losses(losses: Mapping[str, Interaction]) -> Iterator[tuple[str, dict[str, float | None]]]:
    for label, loss in losses.items():
        best = loss.best_strength
        yield (
            label,
            {
                "a": loss.a,
                "b": loss.b,
                "c": loss.c,
                "share_left": loss.share_left(1.0),
                "best_strength": best,
                "share_left_at_best": None if best is None else loss.share_left(best),
            },
        )


def _tensor(tensor: Figures) -> dict[str, Any]:
    own = tensor.measures
    return {
        "name": tensor.name,
        "role": tensor.role.value,
        "stack": tensor.place.stack or None,
        "layer": tensor.place.layer,
        "part": tensor.place.part,
        "shape": list(tensor.shape),
        "action": tensor.action,
        "experts": list(tensor.experts),
        "norm_of_base": math.sqrt(own.base),
        "inner_products": _known(own.inner),
        "drift": [tensor.drift(expert) for expert in tensor.experts],
        "rank_of_optmerge": own.rank,
        "spectra": [
            spectrum
            and {
                "effective_rank": spectrum.effective,
                "stable_rank": spectrum.stable,
                "rank_of_99_percent": spectrum.most,
                "kept_by_optmerge": spectrum.kept,
                "singular_values": [list(point) for point in spectrum.points],
            }
            for spectrum in own.spectra
        ],
        "losses": dict(_losses(own.losses)),
    }


def _known(value: Any) -> Any:
    """Arrays as lists, with null for what is NaN."""
    if isinstance(value, np.ndarray):
        return [_known(each) for each in value.tolist()]
    if isinstance(value, list):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
