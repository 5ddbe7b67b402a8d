"""What decides the result of an alignment, with the values that are known under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mergekit_mm.align.training import Schedule
from mergekit_mm.errors import MergeError

_DIRECTIONS = ("merge", "experts")
RATES = {"adapter": 3e-3, "coefficients": 3e-2}  # the learning rate of each way that suits most merges

# Expert Merging (arXiv 2509.25712): its parametrisation and its constants, as its released code has them.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "expert-merging": {
        "way": "coefficients",
        "directions": "experts",
        "rate": 0.5,
        "anchor": 5.0,
        "clip": 1.0,
        "steps": 5,
        "per_step": 1,
        "check": 5,
        "gate": 0.0,
    },
}


@dataclass(frozen=True)
class Settings:
    """What decides the result of an alignment, beside the merge config, its inputs and the samples.

    way: `adapter` or `coefficients`. per_expert: samples drawn for each expert; all if None. seed: of the draw, the
    split, the order and the adapter's beginning. answer_tokens: the longest answer. top: the tokens of a distribution
    that are kept. dtype: of the models in memory, by torch's name, or `auto` for that of the files. rank: of the
    adapter. targets: only matrices with one of these in their names are trained; all that the merge changes if empty.
    fold: whether the adapter becomes a part of the model, or lies beside the start. directions: what coefficients are
    for: `merge` is the experts' deltas and the merged delta, beginning at the latter; `experts` is the experts' deltas
    alone, each with a coefficient between 0 and 1 that begins at 0.1. recompute: whether the activations of layers are
    computed again for the gradient instead of kept, which changes no value; None for models of more than a billion
    parameters. The others are those of `training.Schedule`.
    """

    way: str = "adapter"
    per_expert: int | None = None
    seed: int = 0
    answer_tokens: int = 32
    top: int = 64
    dtype: str = "float32"
    rank: int = 8
    targets: tuple[str, ...] = ()
    fold: bool = True
    directions: str = "merge"
    recompute: bool | None = None
    steps: int = 80
    rate: float = RATES["adapter"]
    per_step: int = 48
    at_once: int = 8
    check: int = 10
    patience: int = 3
    anchor: float = 0.0
    clip: float | None = None
    gate: float = 1.0

    def __post_init__(self) -> None:
        """MergeError: a value will not do."""
        if self.way not in RATES or self.directions not in _DIRECTIONS:
            raise MergeError(
                f"align: way is {self.way!r} and directions {self.directions!r}; the ways are {', '.join(RATES)}, and "
                f"directions {', '.join(_DIRECTIONS)}."
            )
        least = {"answer_tokens": 1, "top": 1, "rank": 1, "steps": 1, "per_step": 1, "at_once": 1, "check": 1}
        least |= {"patience": 1, "anchor": 0, "gate": 0}
        if wrong := [name for name, limit in least.items() if not getattr(self, name) >= limit]:
            raise MergeError(f"align: {wrong[0]} is {getattr(self, wrong[0])}; it must be {least[wrong[0]]} or more.")
        if not self.rate > 0 or (self.clip is not None and not self.clip > 0):
            raise MergeError(f"align: rate is {self.rate} and clip {self.clip}; they must be more than 0.")

    @classmethod
    def of(cls, preset: str | None = None, **given: Any) -> Settings:
        """The settings of a preset, if one is named, with those `given` in place of its own; the rate is the way's.

        Raises:
            MergeError: there is no such preset or setting, or a value will not do.
        """
        if preset is not None and preset not in PRESETS:
            raise MergeError(f"align: preset {preset!r} is not known; there is {', '.join(PRESETS)}.")
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise MergeError(f"align: there is no setting {unknown[0]!r}; see mergekit_mm.align.settings.Settings.")
        values = {**(PRESETS[preset] if preset else {}), **given}
        values.setdefault("rate", RATES.get(values.get("way", cls.way), cls.rate))
        return cls(**values)

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            steps=self.steps,
            rate=self.rate,
            per_step=self.per_step,
            at_once=self.at_once,
            check=self.check,
            patience=self.patience,
            seed=self.seed,
            anchor=self.anchor,
            clip=self.clip,
            gate=self.gate,
        )
