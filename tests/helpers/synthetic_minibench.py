"""Results of the benchmark in miniature with known effects, as if models had answered questions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from examples.minibench.evidence.board import Ablation, Rows
from examples.minibench.evidence.task_vectors import Relation
from examples.minibench.results import Result

CAPABILITIES = ("vqa", "chart", "ocr", "geometry", "grounding")
MODALITIES = ("image", "audio", "video")
SORTS = ("image", "sound", "video", "image + sound", "video + sound", "image + video")
GRID = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)
# By method: the best accuracy and its strength, the published strength and the seconds of a merge.
METHODS = {
    "linear": (0.43, 0.2, 0.2, 4),
    "task_arithmetic": (0.47, 0.5, 0.3, 4.2),
    "ties": (0.475, 0.7, 0.3, 5),
    "dare_linear": (0.468, 0.5, 0.3, 4.6),
    "dare_ties": (0.472, 0.7, 0.3, 5.5),
    "tsv": (0.50, 0.7, 0.3, 9),
    "iso_c": (0.44, 1.5, 0.3, 8),
    "iso_cts": (0.442, 1.5, 0.3, 9.5),
    "wudi": (0.51, 0.7, 0.3, 60),
    "optmerge": (0.535, 0.7, 1.0, 14),
    "swudi": (0.525, 0.5, 0.2, 8.5),
    "aswudi": (0.52, 0.5, 0.2, 8.8),
    "wudi_sgd": (0.45, 0.5, 0.3, 14),
    "wudi_sgd_mean": (0.533, 0.7, 1.0, 14),
    "optmerge_adam": (0.505, 0.7, 1.0, 60),
    "optmerge_sum": (0.46, 0.5, 1.0, 14),
}
STEPS = ("wudi", "wudi_sgd", "wudi_sgd_mean", "optmerge")
ALONE = {"optimizer": "optmerge_adam", "start": "optmerge_sum", "low rank": "wudi_sgd_mean"}
ROWS = Rows(
    tuple(name for name in METHODS if name not in {*STEPS[1:3], *ALONE.values()}),
    {way: Ablation(STEPS, ALONE) for way in ("full", "lora", "modality")},
)
RUNS = ((0, 0), (0, 1), (0, 2), (1, 0))


class Maker:
    """Draws scores: a question has its own difficulty, common to all models, and a run its own luck."""

    def __init__(self, columns: tuple[str, ...], questions: int, seed: int, luck: float = 0.008) -> None:
        self.rng = np.random.default_rng(seed)
        self.columns, self.questions, self.luck = columns, questions, luck
        self.difficulty = {
            split: {column: self.rng.uniform(size=questions) for column in columns}
            for split in ("validation", "test")
        }  # fmt: skip

    def scores(self, split: str, accuracy: float, changes: dict[str, float] | None = None) -> dict[str, list[float]]:
        """Scores of the given accuracy, plus the change of a column; half of a question's luck is its difficulty."""
        lucky = accuracy + self.luck * self.rng.standard_normal()
        found = {}
        for column in self.columns:
            level = float(np.clip(lucky + (changes or {}).get(column, 0.0), 0, 1))
            own = np.where(self.rng.uniform(size=self.questions) < 0.5, self.rng.uniform(size=self.questions), 2.0)
            drawn = np.where(own < 2, own, self.difficulty[split][column])
            found[column] = (drawn < level).astype(float).tolist()
        return found


def capabilities(way: str = "lora", questions: int = 200, shift: float = 0.0, runs: tuple = RUNS) -> list[Result]:
    """All results of a way of training experts of five capabilities."""
    make = Maker(CAPABILITIES, questions, {"full": 1, "lora": 2}[way])
    found: list[Result] = []
    for split in ("validation", "test"):
        found.append(Result("blind", "blind", split, make.scores(split, 0.20)))
        bases = sorted({base for base, _ in runs})
        found += [Result("base", "base", split, make.scores(split, 0.38), base) for base in bases]
        for base, seed in runs:
            common = {"split": split, "base": base, "way": way, "seed": seed}
            for own in CAPABILITIES:
                changes = {each: 0.25 if each == own else -0.07 for each in CAPABILITIES}
                found.append(Result("expert", own, scores=make.scores(split, 0.38, changes), **common))
            found.append(Result("mixture", "mixture", scores=make.scores(split, 0.55), **common))
            found += _merges(make, split, common, shift)
    return found


# By row and case of merges that learned from samples: the accuracy, and how often samples are drawn.
ALIGNED_ROWS = {
    "adapter": {"5": (0.54, 3), "16": (0.57, 2), "64": (0.63, 1), "64 elsewhere": (0.59, 1)},
    "coefficients": {"5": (0.535, 3), "16": (0.55, 2), "64": (0.57, 1), "64 elsewhere": (0.55, 1)},
    "expert_merging": {"5": (0.50, 3), "16": (0.51, 2), "64": (0.52, 1)},
    "adapter_on_base": {"16": (0.48, 1), "64": (0.53, 1)},
}
LOST = 0.1  # on a capability without samples, by an adapter


def aligned(results: list[Result]) -> list[Result]:
    """Merges of a way of training that begin with OptMerge's of `capabilities` and learned from samples."""
    own = [each for each in results if (each.name, each.split, each.setting) == ("optmerge", "test", "chosen")]
    make = Maker(CAPABILITIES, len(own[0].scores[CAPABILITIES[0]]), {"full": 1, "lora": 2}[own[0].way])
    found: list[Result] = []
    for start in own:
        found.append(replace(start, kind="aligned", name="start", setting="", facts={"method": "optmerge"}))
        for row, given in ALIGNED_ROWS.items():
            cases = {setting: (accuracy, draws, {}) for setting, (accuracy, draws) in given.items()}
            if row in ("adapter", "coefficients"):
                less = LOST if row == "adapter" else 0.0
                cases |= {f"64 without {each}": (given["64"][0], 1, {each: -less}) for each in CAPABILITIES}
            for setting, (accuracy, draws, changes) in cases.items():
                for draw in range(draws):
                    facts = {"draw": draw, "best": 10 * draw, "tokens": 2.5, "before": 0.3, "after": 0.2}
                    scores = make.scores("test", accuracy, changes)
                    about = {"name": row, "setting": setting, "seconds": 12.0, "facts": facts}
                    found.append(replace(start, kind="aligned", scores=scores, strength=None, **about))
    return found


def modalities(questions: int = 200, runs: tuple = RUNS[:3]) -> list[Result]:
    """All results of donors of three modalities."""
    make = Maker(SORTS, questions, 3)
    found: list[Result] = []
    for split, (base, seed) in itertools.product(("validation", "test"), runs):
        common = {"split": split, "base": base, "way": "modality", "seed": seed}
        names = dict(zip(MODALITIES, SORTS[:3], strict=True))
        for own, word in names.items():
            changes = {sort: 0.3 if sort == word else 0.1 if word in sort else 0.0 for sort in SORTS}
            found.append(Result("expert", own, scores=make.scores(split, 0.35, changes), **common))
        found.append(Result("unmerged", "unmerged", scores=make.scores(split, 0.45), **common))
        found += _merges(make, split, common, 0.05)
    return found


def relations() -> list[Relation]:
    """Of pairs of experts, for two ways of training."""
    rng = np.random.default_rng(0)
    return [
        Relation(way, pair, float(rng.normal(0.1, 0.1)), float(rng.uniform(0.2, 0.5)), 0.2, (0.06, 0.11))
        for way in ("full", "lora")
        for pair in itertools.combinations(CAPABILITIES, 2)
    ]


def _merges(make: Maker, split: str, common: dict, shift: float) -> list[Result]:
    found = []
    for name, (best, at, published, seconds) in METHODS.items():
        settings = [("chosen", at), ("published", published)] if split == "test" else [("grid", s) for s in GRID]
        for setting, strength in settings:
            lost = 0.06 * abs(np.log(strength / at))
            found.append(
                Result(
                    "merge",
                    name,
                    scores=make.scores(split, best + shift - lost),
                    setting=setting,
                    strength=strength,
                    seconds=seconds,
                    facts={"tried": len(GRID)} if setting == "chosen" else {},
                    **common,
                )
            )
    return found
