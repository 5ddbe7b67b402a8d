"""The part about modalities: settings, and products for each seed of the example `examples/omni`.

For each seed there is a text LLM and there are three donors that grew from it, trained as in that example, as full
fine-tunes. The seeds share the image tower, which is that of `examples/easy_vqa`, the media and the questions; the text
LLM, the towers for sound and video, the projectors and the donors' language models differ. As every seed has a text
LLM of its own, the results have `base` 0 and the seed in `seed`.

The test is about media and questions that the example has not asked (`unasked` in `examples/omni/media.py`), because
the training of its donors was changed once after a look at its test scores. Strengths are chosen on its validation
media, on which it has chosen its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.common.commands import GRID
from examples.common.training import Stage
from examples.minibench.products import Product
from examples.omni.model import Size
from examples.omni.plan import FULL as TRAINING
from examples.omni.plan import Plan as Training

# To be raised when the code makes something else from the same settings.
VERSIONS = {"questions": "1", "models": "1", "choice": "1", "test": "1"}
SPLITS = {"validation": "validation", "test": "unasked"}  # the example's name of each split
_DARE = {"weight": 1.0, "density": 0.8, "rescale": False, "lambda": 0.3 / 0.8}
# The published setting of each method. The OptMerge paper's scripts have a strength of 0.3 for the sum of the experts'
# deltas, and divide it by the density in DARE; its file for modalities has 1.0 for OptMerge. SWUDI and ASWUDI have 0.2
# in theirs. The text part of DAMC is the average of the donors, as in NaiveMC, which is `linear`.
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "weight": 1.0},
    "task_arithmetic": {"merge_method": "task_arithmetic", "weight": 1.0, "lambda": 0.3},
    "damc": {"merge_method": "task_arithmetic", "composition": "damc", "weight": 1.0, "lambda": 1 / 3},
    "ties": {"merge_method": "ties", "weight": 1.0, "density": 0.2, "lambda": 0.3},
    "dare_linear": {"merge_method": "dare_linear", **_DARE},
    "dare_ties": {"merge_method": "dare_ties", **_DARE},
    "tsv": {"merge_method": "tsv", "scaling": 0.3},
    "iso_c": {"merge_method": "iso_c", "scaling": 0.3},
    "wudi": {"merge_method": "wudi", "scaling": 0.3},
    "optmerge": {"merge_method": "optmerge", "preset": "modality", "scaling": 1.0},
    "swudi": {"merge_method": "swudi", "scaling": 0.2},
    "aswudi": {"merge_method": "aswudi", "scaling": 0.2},
}
WITHOUT_STRENGTH = ("linear",)


@dataclass(frozen=True)
class Modalities:
    """All settings that the results about modalities depend on."""

    training: Training
    seeds: int
    methods: tuple[str, ...]
    counts: Mapping[str, int]  # questions of each of the six sorts, by split


FULL = Modalities(
    training=replace(TRAINING, lora=None),
    seeds=3,
    methods=tuple(METHODS),
    counts={"validation": 100, "test": 600},
)
QUICK = Modalities(
    training=replace(
        FULL.training,
        llm=(Stage(150, 32, 3e-3), Stage(100, 32, 2e-3)),
        tower=Stage(60, 32, 3e-3),
        align=Stage(40, 32, 4e-3),
        donor=Stage(40, 32, 8e-4),
        size=Size(width=96, layers=2, mlp=192, tower_width=32, tower_layers=2),
    ),
    seeds=1,
    methods=("linear", "task_arithmetic", "optmerge"),
    counts={"validation": 30, "test": 60},
)


class ModalityProducts:
    """The products about modalities. Each `make` imports what it needs, as torch and lm-eval are slow to import."""

    def __init__(self, settings: Modalities, out: Path) -> None:
        self.settings, self.out = settings, out

    def all(self) -> list[Product]:
        """Every product, after those that it needs."""
        seeds, methods = range(self.settings.seeds), self.settings.methods
        return [
            *(self.questions(split) for split in SPLITS),
            *(self.models(seed) for seed in seeds),
            *(self.choice(method, seed) for seed in seeds for method in methods if method not in WITHOUT_STRENGTH),
            *(self.unmerged(seed) for seed in seeds),
            *(self.test(method, seed) for seed in seeds for method in methods),
        ]

    def questions(self, split: str) -> Product:
        """The questions of a split with their media, where the example's tasks read them."""
        count = self.settings.counts[split]

        def make(folder: Path) -> None:
            from examples.omni.scores import write_questions

            write_questions(SPLITS[split], count, folder)

        settings = {"count": count, "media": SPLITS[split], "easy-vqa": version("easy-vqa")}
        return Product(f"modality-questions-{split}", VERSIONS["questions"], settings, make)

    def models(self, seed: int) -> Product:
        """The text LLM and the donors of a seed, each in a folder of its name."""
        training = self.settings.training

        def make(folder: Path) -> None:
            from examples.omni.train import MODELS, train

            train(folder, MODELS, training, seed)

        settings = {"training": asdict(training), "seed": seed, "easy-vqa": version("easy-vqa")}
        return Product(f"modality-models-{seed}", VERSIONS["models"], settings, make)

    def choice(self, method: str, seed: int) -> Product:
        """The results of a method at each strength of the grid, on validation questions."""
        questions, models = self.questions("validation"), self.models(seed)

        def make(folder: Path) -> None:
            from examples.minibench.modality_results import grid
            from examples.minibench.results import write_results

            parts = (models.folder(self.out), questions.folder(self.out))
            write_results(grid(method, METHODS[method], *parts, seed), folder)

        settings = {"recipe": METHODS[method], "grid": GRID}
        return Product(f"modality-choice-{method}-{seed}", VERSIONS["choice"], settings, make, (models, questions))

    def test(self, method: str, seed: int) -> Product:
        """The results of a method on test questions: as published, and with the strength that `choice` has shown."""
        questions, models = self.questions("test"), self.models(seed)
        choice = None if method in WITHOUT_STRENGTH else self.choice(method, seed)

        def make(folder: Path) -> None:
            from examples.minibench.modality_results import merged
            from examples.minibench.results import read_results, write_results

            tried = read_results(choice.folder(self.out)) if choice else []
            parts = (models.folder(self.out), questions.folder(self.out))
            write_results(merged(method, METHODS[method], tried, *parts, seed), folder)

        needs = (models, questions, *([choice] if choice else []))
        return Product(f"modality-test-{method}-{seed}", VERSIONS["test"], {"recipe": METHODS[method]}, make, needs)

    def unmerged(self, seed: int) -> Product:
        """The results on test questions of the donors, and of their towers on the text LLM."""
        questions, models = self.questions("test"), self.models(seed)

        def make(folder: Path) -> None:
            from examples.minibench.modality_results import donors_and_unmerged
            from examples.minibench.results import write_results

            write_results(donors_and_unmerged(models.folder(self.out), questions.folder(self.out), seed), folder)

        return Product(f"modality-test-unmerged-{seed}", VERSIONS["test"], {}, make, (models, questions))
