"""Results of one way of training, arranged for comparison: models, runs and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from examples.minibench.evidence.statistics import MEAN, RESAMPLES, Array, Bootstrap, Interval
from examples.minibench.results import Result
from examples.omni.facts import NAMES

Run = tuple[int, int]  # a base, and the seed of the experts
# The number of the picture that each question is about, by column.
Groups = Mapping[str, Sequence[int]]
WAYS = {"full": "full fine-tunes", "lora": "LoRA experts", "modality": "experts of different modalities"}
_UNNAMED = {"blind": "without looking", "base": "base", "mixture": "mixture training", "unmerged": "towers, unmerged"}


class Model(NamedTuple):
    """What is compared: one model of each run. strength: of a merge on the grid of strengths, else None."""

    kind: str
    name: str
    setting: str = ""
    strength: float | None = None

    @property
    def label(self) -> str:
        """How tables and figures call it."""
        if self.kind == "expert":
            return f"expert {self.name}"
        return _UNNAMED.get(self.kind, self.name)


@dataclass(frozen=True)
class Ablation:
    """The rows of an ablation of OptMerge, by the names of merges.

    cumulative: from WUDI on, each with one part more. alone: by part, OptMerge with that part alone changed back.
    """

    cumulative: Sequence[str] = ()
    alone: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """What a list of methods tells of their rows. methods: those of the main tables, in order. ablations: by way."""

    methods: Sequence[str] = ()
    ablations: Mapping[str, Ablation] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """The scores of all models on one split, with their resamples.

    scores: for each column an array (models, runs, questions), NaN for a run that a model is not of.
    """

    way: str
    split: str
    columns: tuple[str, ...]
    runs: tuple[Run, ...]
    models: tuple[Model, ...]
    results: Mapping[Model, Sequence[Result]]
    scores: Sequence[Array]
    groups: Groups = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)
    resamples: int = RESAMPLES

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resamples, which take a second or two."""
        return Bootstrap(self.scores, [self.groups.get(column) for column in self.columns], self.resamples)

    def of(self, kind: str, name: str | None = None, setting: str | None = None) -> list[Model]:
        """The models of a kind, with this name and this setting if they are given."""
        return [
            each
            for each in self.models
            if each.kind == kind and name in (None, each.name) and setting in (None, each.setting)
        ]

    def one(self, kind: str, name: str | None = None, setting: str | None = None) -> Model | None:
        """As `of`, the first model, if there is one."""
        return next(iter(self.of(kind, name, setting)), None)

    def merges(self) -> list[Model]:
        """Each method once, at the chosen strength if one was chosen."""
        names = dict.fromkeys(each.name for each in self.of("merge") if each.setting != "grid")
        found = [self.one("merge", name, "chosen") or self.one("merge", name, "published") for name in names]
        return [each for each in found if each]

    def main(self) -> list[Model]:
        """The merges of the main tables: without the rows that are in the ablation alone."""
        return [each for each in self.merges() if each.name not in self.only_ablated]

    @property
    def only_ablated(self) -> set[str]:
        """The names of the merges that are no method of their own."""
        return {*self.ablation.cumulative, *self.ablation.alone.values()} - set(self.rows.methods)

    def method(self, name: str) -> Model | None:
        """A method's merge; of a method with presets, the preset for this way of training."""
        merges = {each.name: each for each in self.merges()}
        return merges.get(name) or merges.get(f"{name}_{self.way}")

    @property
    def title(self) -> str:
        """The kind of experts, in words."""
        return WAYS.get(self.way, self.way)

    @property
    def ablation(self) -> Ablation:
        """The rows of this way's ablation."""
        return self.rows.ablations.get(self.way, Ablation())

    def at(self, column: str | None) -> int:
        """The place of a column; None is the mean of all."""
        return MEAN if column is None else self.columns.index(column)

    def mean(self, model: Model, column: str | None = None) -> Interval:
        """A model's accuracy."""
        return self.bootstrap.mean(self.models.index(model), self.at(column))

    def contrast(self, weights: Mapping[Model, float], column: str | None = None) -> Interval:
        """A weighted sum of models' accuracies, over the runs that all of them are of."""
        return self.bootstrap.contrast(self._indexed(weights), self.at(column))

    def difference(self, model: Model, other: Model, column: str | None = None) -> Interval:
        """How far a model is above another one."""
        return self.contrast({model: 1.0, other: -1.0}, column)

    def above_all(self, model: Model, others: Sequence[Model]) -> Interval:
        """How far a model is above the best of others."""
        return self.bootstrap.above_all(self.models.index(model), [self.models.index(each) for each in others])

    def by_run(self, weights: Mapping[Model, float]) -> Array:
        """A weighted sum of mean accuracies in each of the common runs."""
        return self.bootstrap.by_run(self._indexed(weights))

    def ranks(self, models: Sequence[Model]) -> dict[Model, Interval]:
        """The ranks of models among each other."""
        return dict(zip(models, self.bootstrap.ranks([self.models.index(each) for each in models]), strict=True))

    def strengths(self, model: Model) -> list[float]:
        """The strengths of a merge, one for each run, in ascending order."""
        return sorted(each.strength for each in self.results[model] if each.strength is not None)

    def seconds(self, model: Model) -> float | None:
        """The median of the seconds that a merge took."""
        known = [each.seconds for each in self.results[model] if each.seconds is not None]
        return float(np.median(known)) if known else None

    def own(self, expert: Model) -> str | None:
        """The column of an expert's own capability or modality."""
        return next((c for c in self.columns if c in (expert.name, NAMES.get(expert.name))), None)

    def only(self, columns: Sequence[str]) -> Board:
        """The same models on some of the columns."""
        kept = [self.columns.index(column) for column in columns]
        return replace(self, columns=tuple(columns), scores=[self.scores[at] for at in kept])

    def among(self, models: Sequence[Model]) -> Board:
        """Some of the models, on the same columns."""
        kept = [self.models.index(model) for model in models]
        return replace(self, models=tuple(models), scores=[scores[kept] for scores in self.scores])

    def _indexed(self, weights: Mapping[Model, float]) -> dict[int, float]:
        return {self.models.index(model): weight for model, weight in weights.items()}
