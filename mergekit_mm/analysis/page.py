"""An analysis as a page for browsers: heat maps by layer and part, drift by layer, spectra, pairs, outliers, advice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from mergekit_mm.analysis.advice import advise
from mergekit_mm.analysis.groups import Figures, Group
from mergekit_mm.analysis.numbers import number, percent
from mergekit_mm.analysis.outliers import outliers
from mergekit_mm.analysis.result import Analysis, Expert
from mergekit_mm.pages import Cell, Column, Line, LinePanel, Page, Point, Section, heat_map, lines, table, tag

_KINDS = 6  # Pages tell so many kinds of lines apart.
_STRENGTHS = [at / 10 for at in range(21)]
_ACTIONS = {
    "merge": "merged",
    "average": "mean of the experts",
    "keep": "kept as in the base",
    "take": "taken from one input",
    "route": "routed to its owners",
}


def as_page(analysis: Analysis) -> Page:
    """The page. Everything that a name or a note holds is escaped there."""
    sections = (_advice, _experts, _drift, _pairs, _spectra, _losses, _outliers, _files)
    layers = "all layers" if analysis.layers is None else f"{analysis.layers} layers of each stack"
    lead = [
        analysis.headline,
        f"What {len(analysis.experts)} experts changed of {analysis.base}: {len(analysis.tensors)} tensors of {layers} "
        "were looked at, from the weights alone. Letters stand for experts.",
    ]
    return Page(f"Experts of {analysis.base}", [made for each in sections if (made := each(analysis)).blocks], lead)


def _advice(analysis: Analysis) -> Section:
    points = [
        tag(
            "li",
            [
                tag("strong", _with_code(each.text)),
                tag("p", _with_code(f"Reason: {each.reason}")),
                tag("p", _with_code(f"Source: {each.source}.")),
            ],
        )
        for each in advise(analysis)
    ]
    told = tag("p", _with_code("Which method is best, validation questions tell: `mergekit-mm tune`."))
    return Section("advice", "Advice", [tag("ol", points), told] if points else [told])


def _experts(analysis: Analysis) -> Section:
    group = analysis.merged if analysis.merged.tensors else analysis.all
    total = float(np.square(group.norms).sum())
    rows = [
        [
            expert.label,
            expert.name,
            "an adapter" if expert.form == "adapter" else "a whole model",
            Cell(number(norm := float(group.norms[at])), norm),
            _share(group.drift[at]),
            _share(norm**2 / total if total else None),
        ]
        for at, expert in enumerate(analysis.experts)
    ]
    columns = [
        Column("letter"),
        Column("expert"),
        Column("form"),
        Column("norm", numeric=True, note="of the task vector, over all that is merged"),
        Column("drift", numeric=True, note="that norm over the norm of the base's tensors"),
        Column("of all norm²", numeric=True, note="the share of the squared norms of all experts"),
    ]
    return Section(
        "experts", "Experts", [table("experts-table", "The experts, in what is merged", columns, rows, tools=False)]
    )


def _drift(analysis: Analysis) -> Section:
    labels = _labels(analysis)
    roles = [
        [role.value, len(group.tensors), *map(_share, group.drift), _actions(group)]
        for role, group in analysis.by_role.items()
    ]
    columns = [Column("role"), Column("tensors", numeric=True), *(Column(each, numeric=True) for each in labels)]
    blocks: list[str] = [
        "Drift is the norm of what an expert changed over the norm of the base's tensors.",
        table("roles", "Drift by role", [*columns, Column("in the merge")], roles, tools=False),
    ]
    panels = [
        LinePanel(
            stack,
            [
                Line(label, [Point(layer, 100 * float(group.drift[at])) for layer, group in layers.items()], _kind(at))
                for at, label in enumerate(labels)
            ],
        )
        for stack, layers in _moved(analysis)
    ]
    if panels:
        blocks.append(lines("by-layer", "Drift by layer, in %, of the matrices of each stack", "layer", panels, ".2f"))
    for place, (stack, _layers) in enumerate(_moved(analysis)):
        for at, expert in enumerate(analysis.experts):
            caption = f"Drift of {_short_name(expert)} in %, by part and layer of {stack}"
            blocks += _by_part(analysis, stack, f"drift-{place}-{at}", caption, _drift_of(at), ".1f")
    return Section("drift", "Drift", blocks)


def _drift_of(expert: int) -> Callable[[Group], float]:
    return lambda group: 100 * float(group.drift[expert])


def _pairs(analysis: Analysis) -> Section:
    labels = _labels(analysis)
    if len(labels) < 2:
        return Section("pairs", "Pairs", [])
    group = analysis.merged if analysis.merged.tensors else analysis.all
    blocks: list[str] = [
        heat_map("cosine", "Cosine of the task vectors, in what is merged", labels, labels, _known(group.cosine), 0.0),
        heat_map(
            "equal-signs",
            "Equal signs in %, of the entries that both change; 50 is chance",
            labels,
            labels,
            _known(100 * group.signs),
            50.0,
            ".1f",
        ),
    ]
    for side, of in (("outputs", "left"), ("inputs", "right")):
        share, chance = group.overlap(side)
        if np.isfinite(share).any():
            expected = float(np.nanmean(chance))
            caption = (
                f"Common {side} in %: what the leading {of} singular subspaces share, mean over matrices; "
                f"{percent(expected)} by chance"
            )
            notes = [[f"{percent(each)} by chance" if math.isfinite(each) else "" for each in row] for row in chance]
            blocks.append(heat_map(f"common-{side}", caption, labels, labels, _known(100 * share), None, ".1f", notes))
    for place, (stack, _layers) in enumerate(_moved(analysis)):
        caption = f"Mean cosine of all pairs, by part and layer of {stack}"
        blocks += _by_part(analysis, stack, f"cosine-{place}", caption, _mean_cosine, ".3f", 0.0)
    return Section("pairs", "Pairs", blocks)


def _mean_cosine(group: Group) -> float:
    return _mean(group.cosine[np.triu_indices(group.count, 1)])


def _spectra(analysis: Analysis) -> Section:
    if not analysis.has_spectra:
        return Section("spectra", "Spectra", [])
    blocks: list[str] = []
    panels = list(_spectrum_panels(analysis))
    if panels:
        caption = (
            "Singular values of the task vectors over the largest, means over layers; both axes are logarithms to base "
            "10. k is the rank that OptMerge keeps"
        )
        blocks.append(lines("spectrum", caption, "place, logarithm", panels, ".2f", ".2f"))
    figures: Sequence[tuple[str, str, Callable[[Group], float], str]] = (
        ("effective", "Effective rank", lambda group: _mean(group.mean_of_spectra("effective")), ".1f"),
        ("stable", "Stable rank", lambda group: _mean(group.mean_of_spectra("stable")), ".1f"),
        ("kept", "Squared norm in % that OptMerge's cut keeps", lambda group: 100 * _mean(group.kept), ".1f"),
    )
    for place, (stack, _layers) in enumerate(_moved(analysis)):
        for name, heading, figure, form in figures:
            caption = f"{heading}, mean of the experts, by part and layer of {stack}"
            blocks += _by_part(analysis, stack, f"{name}-{place}", caption, figure, form)
    return Section("spectra", "Spectra", blocks)


def _spectrum_panels(analysis: Analysis) -> Iterator[LinePanel]:
    """A panel for each part whose matrices have one shape; places and heights as logarithms."""
    parts: dict[tuple[str, tuple[int, ...]], list[Figures]] = {}
    for tensor in analysis.merged.tensors:
        if tensor.measures.rank is not None:
            parts.setdefault((tensor.place.part, tensor.shape), []).append(tensor)
    for (part, shape), tensors in parts.items():
        drawn = []
        for at, expert in enumerate(analysis.experts):
            heights: dict[int, list[float]] = {}
            for tensor in tensors:
                for place, height in spectrum.points if (spectrum := tensor.spectrum(at)) else ():
                    heights.setdefault(place, []).append(height)
            points = [Point(math.log10(place), math.log10(_mean(np.array(h)))) for place, h in sorted(heights.items())]
            if points:
                drawn.append(Line(_short_name(expert), points, _kind(at)))
        if drawn:
            yield LinePanel(f"{part} ({min(shape[-2:])} places, k = {tensors[0].measures.rank})", drawn)


def _losses(analysis: Analysis) -> Section:
    losses = analysis.merged.losses
    if not losses:
        return Section("losses", "Interaction losses", [])
    drawn: list[Line] = []
    rows: list[list[Cell | str | float | None]] = []
    for at, (label, loss) in enumerate(losses.items()):
        shares = [(strength, loss.share_left(strength)) for strength in _STRENGTHS]
        drawn.append(Line(label, [Point(s, 100 * share) for s, share in shares if share is not None], _kind(at)))
        best = loss.best_strength
        least = None if best is None else loss.share_left(best)
        at_best = Cell(number(best), best if best is not None else "")
        rows.append([label, _share(loss.share_left(1.0)), at_best, _share(least)])
    columns = [
        Column("method"),
        Column("as it is", numeric=True),
        Column("least at", numeric=True, note="so many times what the method makes"),
        Column("there", numeric=True),
    ]
    caption = "Interaction loss in %, of the unmerged base's, at so many times what the method makes"
    panel = LinePanel("all matrices that are merged", drawn, [("unmerged base", 100.0)])
    return Section(
        "losses",
        "Interaction losses",
        [
            "What optmerge and wudi lower: how far the merge's answers to each expert's inputs are from that expert's, "
            "with the rows of task vectors in the place of inputs. It is found from weights, knows nothing of answers, "
            "and is no guide to the strength.",
            lines("loss", caption, "strength", [panel], ".1f"),
            table("losses-table", "Interaction loss, of the unmerged base's", columns, rows, tools=False),
        ],
    )


def _outliers(analysis: Analysis) -> Section:
    found = outliers(analysis.tensors, len(analysis.experts))
    if not found:
        return Section("outliers", "Outliers", [])
    rows = [
        [
            each.tensor.name,
            analysis.experts[each.expert].label,
            each.tensor.role.value,
            _share(each.drift),
            _share(each.median),
            Cell(f"{each.factor:.2g}", each.factor),
        ]
        for each in found
    ]
    columns = [
        Column("tensor"),
        Column("expert"),
        Column("role"),
        Column("drift", numeric=True),
        Column("median of its like", numeric=True),
        Column("times", numeric=True),
    ]
    caption = "Tensors that an expert moved much more, or much less, than others of their role"
    return Section("outliers", "Outliers", [table("outliers-table", caption, columns, rows)])


def _files(analysis: Analysis) -> Section:
    blocks: list[str] = []
    for heading, notes in (("Files beside the weights", analysis.side_files), ("Other notes", analysis.notes)):
        if notes:
            blocks += [tag("h3", heading), tag("ul", [tag("li", note) for note in notes])]
    if analysis.not_measured:
        listed = [tag("li", f"{count}: {why}") for why, count in analysis.not_measured.items()]
        blocks += [tag("h3", "Tensors that were not looked at"), tag("ul", listed)]
    return Section("files", "Files and notes", blocks)


def _by_part(
    analysis: Analysis,
    stack: str,
    identity: str,
    caption: str,
    figure: Callable[[Group], float],
    form: str,
    centre: float | None = None,
) -> list[Markup]:
    """A heat map of one stack, parts as rows and layers as columns; none if the figure is known nowhere."""
    parts: Mapping[str, Mapping[int, float]] = analysis.cells(figure).get(stack, {})
    known = {
        part: {layer: value for layer, value in row.items() if math.isfinite(value)} for part, row in parts.items()
    }
    known = {part: row for part, row in known.items() if row and (centre is not None or any(row.values()))}
    if not known:
        return []
    layers = sorted({layer for row in known.values() for layer in row})
    values = [[row.get(layer) for layer in layers] for row in known.values()]
    return [heat_map(identity, caption, list(known), [str(layer) for layer in layers], values, centre, form)]


def _moved(analysis: Analysis) -> list[tuple[str, Mapping[int, Group]]]:
    """The stacks of layers that some expert changed."""
    return [
        (stack, layers)
        for stack, layers in analysis.by_layer.items()
        if any(group.norms.any() for group in layers.values())
    ]


def _actions(group: Group) -> str:
    return ", ".join(_ACTIONS.get(action, action) for action in dict.fromkeys(t.action for t in group.tensors))


def _labels(analysis: Analysis) -> list[str]:
    return [_short_name(expert) for expert in analysis.experts]


def _short_name(expert: Expert) -> str:
    """The letter and the last part of the name: `A lora_chart`."""
    return f"{expert.label} {re.split(r'[/+]', expert.name.rstrip('/'))[-1]}"


def _with_code(text: str) -> list[str]:
    """A sentence whose parts between backticks are code."""
    parts = text.split("`")
    return [tag("code", part) if at % 2 else part for at, part in enumerate(parts)]


def _kind(at: int) -> int:
    return at % _KINDS


def _share(share: float | None) -> Cell:
    if share is None or not math.isfinite(share):
        return Cell("–", "")
    return Cell(percent(share), float(share))


def _known(matrix: np.ndarray) -> list[list[float | None]]:
    return [[each if math.isfinite(each) else None for each in row] for row in matrix.tolist()]


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
