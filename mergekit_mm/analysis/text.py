"""An analysis as text for terminals: tables in which a letter stands for each expert."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from textwrap import wrap

import numpy as np

from mergekit_mm.analysis.advice import advise
from mergekit_mm.analysis.cost import in_words
from mergekit_mm.analysis.groups import Figures, Group
from mergekit_mm.analysis.numbers import number, percent, short
from mergekit_mm.analysis.outliers import outliers
from mergekit_mm.analysis.result import Analysis
from mergekit_mm.checkpoints.roles import Role

_LAYERS = 12  # At most so many layers of a stack are listed.
_OUTLIERS = 8
_PARTS = 16
_WIDTH = 100


def as_text(analysis: Analysis) -> str:
    """All tables, and the advice; a few thousand characters, whatever the size of the models."""
    sections = (_head, _experts, _roles, _parts, _layers, _pairs, _losses, _outliers, _files, _advice)
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section(analysis))))


def _head(analysis: Analysis) -> Iterator[str]:
    yield analysis.headline
    matrices = sum(tensor.measures.rank is not None for tensor in analysis.tensors)
    seen = f"  {len(analysis.tensors)} tensors were looked at, {matrices} of them for spectra"
    yield seen + ("." if analysis.layers is None else f"; so many layers of each stack: {analysis.layers}.")
    for why, count in analysis.not_measured.items():
        yield f"  {count} tensors were not: {why}."
    if not analysis.has_spectra:
        yield f"  No spectra: {in_words(analysis.cost.spectra)}; --spectra computes them."
    if not analysis.methods and len(analysis.experts) > 1:
        yield f"  No interaction losses: {in_words(analysis.cost.losses)}; --losses computes them."
    for note in analysis.notes:
        yield f"  note: {note}"


def _experts(analysis: Analysis) -> Iterator[str]:
    group = analysis.merged if analysis.merged.tensors else analysis.all
    total = float(np.square(group.norms).sum())
    rows = []
    for at, expert in enumerate(analysis.experts):
        share = group.norms[at] ** 2 / total if total else math.nan
        rows.append(
            [
                expert.label,
                expert.form,
                number(group.norms[at]),
                percent(group.drift[at]),
                percent(share),
                expert.name,
            ]
        )
    yield "Experts: the task vectors of what is merged"
    yield from table(["", "form", "norm", "drift", "of all norm^2", "expert"], rows, left=(1, 5))


def _roles(analysis: Analysis) -> Iterator[str]:
    yield "Drift by role: the norm of the task vector over that of the base's tensors"
    rows = [
        [role.value, str(len(group.tensors)), *map(percent, group.drift), _actions(group)]
        for role, group in analysis.by_role.items()
    ]
    yield from table(["role", "tensors", *_labels(analysis), "in the merge"], rows, left=(0, len(analysis.experts) + 2))


def _actions(group: Group) -> str:
    words = {"merge": "merged", "average": "mean", "keep": "as the base", "take": "of one input", "route": "routed"}
    found = dict.fromkeys(tensor.action for tensor in group.tensors)
    return ", ".join(words.get(action, action) for action in found)


def _parts(analysis: Analysis) -> Iterator[str]:
    if not analysis.has_spectra:
        return
    seen = [tensor for tensor in analysis.merged.tensors if tensor.measures.rank is not None]
    parts: dict[tuple[Role, str], list[Figures]] = {}
    for tensor in seen:
        parts.setdefault((tensor.role, tensor.place.part), []).append(tensor)
    if not parts:
        return
    yield "Spectra of what is merged, means over layers and experts"
    rows = []
    for (_role, part), tensors in list(parts.items())[:_PARTS]:
        group = analysis.group(tensors)
        rank = float(np.mean([tensor.measures.rank for tensor in tensors]))
        figures = [_mean(group.mean_of_spectra(each)) for each in ("effective", "stable", "most")]
        side = float(np.mean([min(tensor.shape[-2:]) for tensor in tensors]))
        rows.append(
            [
                part,
                str(len(tensors)),
                *_drifts(group),
                *map(short, [side, *figures, rank]),
                percent(_mean(group.kept)),
            ]
        )
    heads = ["part", "tensors", "drift", "side", "effective", "stable", "99 %", "k", "kept by k"]
    yield from table(heads, rows, left=(0,))
    if len(parts) > _PARTS:
        yield f"  ... and {len(parts) - _PARTS} more parts, in --json"
    yield (
        "  side: the smaller of a matrix; effective, stable: ranks; 99 %: directions with 99 % of norm^2; k: rank of "
        "OptMerge"
    )


def _drifts(group: Group) -> list[str]:
    """The smallest and the largest drift of the experts."""
    known = group.drift[np.isfinite(group.drift)]
    if not len(known):
        return ["-"]
    low, high = float(known.min()), float(known.max())
    return [percent(low) if math.isclose(low, high) else f"{percent(low)[:-2]} to {percent(high)}"]


def _layers(analysis: Analysis) -> Iterator[str]:
    for stack, layers in analysis.by_layer.items():
        moved = {layer: group for layer, group in layers.items() if np.nansum(group.norms) > 0}
        if len(layers) < 2 or not moved:
            continue
        listed = list(layers)
        if len(listed) > _LAYERS:
            listed = [listed[at] for at in np.linspace(0, len(listed) - 1, _LAYERS).round().astype(int)]
        yield f"Drift by layer, of the matrices of {stack}"
        rows = []
        for layer in listed:
            group = layers[layer]
            cosine = [number(_mean(_upper(group.cosine)))] if len(analysis.experts) > 1 else []
            rows.append([str(layer), *map(percent, group.drift), *cosine])
        yield from table(["layer", *_labels(analysis), *(["mean cosine"] if len(analysis.experts) > 1 else [])], rows)
        if len(listed) < len(layers):
            yield f"  {len(listed)} of {len(layers)} layers; all are in --json"


def _pairs(analysis: Analysis) -> Iterator[str]:
    if len(analysis.experts) < 2:
        return
    group = analysis.merged if analysis.merged.tensors else analysis.all
    outputs, chance_outputs = group.overlap("outputs")
    inputs, chance_inputs = group.overlap("inputs")
    rows = []
    for i, j in combinations(range(len(analysis.experts)), 2):
        pair = f"{analysis.experts[i].label} {analysis.experts[j].label}"
        row = [pair, number(group.cosine[i, j]), percent(group.signs[i, j])]
        for share, chance in ((outputs, chance_outputs), (inputs, chance_inputs)):
            known = np.isfinite(share[i, j])
            row.append(f"{percent(share[i, j])} ({percent(chance[i, j])})" if known else "-")
        rows.append(row)
    yield "Pairs of experts, in what is merged (in brackets: what random subspaces have)"
    yield from table(["", "cosine", "equal signs", "common outputs", "common inputs"], rows, left=(0,))


def _losses(analysis: Analysis) -> Iterator[str]:
    losses = analysis.merged.losses
    if not losses:
        return
    yield "Interaction loss that methods leave, as a share of the unmerged base's"
    rows = []
    for label, loss in losses.items():
        best = loss.best_strength
        at_best = None if best is None else loss.share_left(best)
        rows.append([label, percent(loss.share_left(1.0)), number(best), percent(at_best)])
    yield from table(["method", "as it is", "least at", "there"], rows, left=(0,))
    yield "  least at: so many times what the method makes; no guide to the strength, as it knows nothing of answers"


def _outliers(analysis: Analysis) -> Iterator[str]:
    found = outliers(analysis.tensors, len(analysis.experts))
    if not found:
        return
    yield "Tensors whose drift is far from the median of their role"
    rows = [
        [analysis.experts[each.expert].label, percent(each.drift), percent(each.median), each.tensor.name]
        for each in found[:_OUTLIERS]
    ]
    yield from table(["", "drift", "median", "tensor"], rows, left=(3,))
    if len(found) > _OUTLIERS:
        yield f"  ... and {len(found) - _OUTLIERS} more, in --json"


def _files(analysis: Analysis) -> Iterator[str]:
    if analysis.side_files:
        yield "Files beside the weights"
        for note in analysis.side_files:
            yield from _wrapped(note, "  ", "    ")


def _advice(analysis: Analysis) -> Iterator[str]:
    yield "Advice"
    for place, advice in enumerate(advise(analysis), 1):
        yield from _wrapped(f"{place}. {advice.text}", "  ", "     ")
        yield from _wrapped(f"Reason: {advice.reason}", "     ", "     ")
        yield from _wrapped(f"Source: {advice.source}.", "     ", "     ")
    yield "  Which method is best, validation questions tell: mergekit-mm tune."


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> Iterator[str]:
    """Aligned lines under heads: to the left in the columns whose places are in `left`, else to the right."""
    widths = [max(len(each) for each in column) for column in zip(heads, *rows, strict=True)]
    for line in (heads, *rows):
        cells = (c.ljust(w) if at in left else c.rjust(w) for at, (c, w) in enumerate(zip(line, widths, strict=True)))
        yield ("  " + "  ".join(cells)).rstrip()


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return wrap(text, _WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False)


def _labels(analysis: Analysis) -> list[str]:
    return [expert.label for expert in analysis.experts]


def _mean(values: np.ndarray) -> float:
    """The mean of what is known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _upper(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix[np.triu_indices(len(matrix), 1)])
