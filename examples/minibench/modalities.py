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

from examples.common.commands import GRID
from examples.common.training import Stage
from examples.minibench.methods import BY_NAME, methods
from examples.minibench.products import Product
from examples.minibench.results import Result, read_results
from examples.omni.model import Size
from examples.omni.plan import FULL as TRAINING
from examples.omni.plan import Plan as Training

# To be raised when the code makes something else from the same settings.
VERSIONS = {"questions": "1", "models": "1", "choice": "1", "test": "2"}
SPLITS = {"validation": "validation", "test": "unasked"}  # the example's name of each split
WAY = "modality"


@dataclass(frozen=True)
class Modalities:
    """All settings that the results about modalities depend on."""

    training: Training
    seeds: int
    methods: tuple[str, ...]  # names of entries of `METHODS`
    grid: tuple[float, ...]  # the strengths that are tried for each method
    counts: Mapping[str, int]  # questions of each of the six sorts, by split


FULL = Modalities(
    training=replace(TRAINING, lora=None),
    seeds=3,
    methods=tuple(method.name for method in methods(WAY)),
    grid=GRID,
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
    grid=(0.3, 1.0),
    counts={"validation": 30, "test": 60},
)


class ModalityProducts:
    """The products about modalities. Each `make` imports what it needs, as torch and lm-eval are slow to import."""

    def __init__(self, settings: Modalities, out: Path) -> None:
        self.settings, self.out = settings, out

    def all(self) -> list[Product]:
        """Every product, after those that it needs."""
        seeds, names = range(self.settings.seeds), self.settings.methods
        return [
            *(self.questions(split) for split in SPLITS),
            *(self.models(seed) for seed in seeds),
            *(self.choice(name, seed) for seed in seeds for name in names if _strength(name) is not None),
            *(self.unmerged(seed) for seed in seeds),
            *(self.test(name, seed) for seed in seeds for name in names),
        ]

    def results(self) -> list[Result]:
        """All that has been measured so far, on both splits."""
        asking = (product for product in self.all() if product.name.startswith(("modality-choice-", "modality-test-")))
        folders = (product.folder(self.out) for product in asking)
        return [result for folder in folders if folder.exists() for result in read_results(folder)]

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
            from examples.minibench.modality_results import try_strengths
            from examples.minibench.results import write_results

            parts = (models.folder(self.out), questions.folder(self.out))
            write_results(try_strengths(BY_NAME[method], self.settings.grid, *parts, seed), folder)

        settings = {"recipe": BY_NAME[method].recipe(WAY, 1.0), "grid": self.settings.grid}
        return Product(f"modality-choice-{method}-{seed}", VERSIONS["choice"], settings, make, (models, questions))

    def test(self, method: str, seed: int) -> Product:
        """The results of a method on test questions: as published, and with the strength that `choice` has shown."""
        questions, models = self.questions("test"), self.models(seed)
        published = _strength(method)
        choice = None if published is None else self.choice(method, seed)

        def make(folder: Path) -> None:
            from examples.minibench.modality_results import merged
            from examples.minibench.results import write_results

            tried = read_results(choice.folder(self.out)) if choice else []
            parts = (models.folder(self.out), questions.folder(self.out))
            write_results(merged(BY_NAME[method], tried, *parts, seed), folder)

        needs = (models, questions, *([choice] if choice else []))
        settings = {"recipe": BY_NAME[method].recipe(WAY, published)}
        return Product(f"modality-test-{method}-{seed}", VERSIONS["test"], settings, make, needs)

    def unmerged(self, seed: int) -> Product:
        """The results on test questions of the donors, and of their towers on the text LLM."""
        questions, models = self.questions("test"), self.models(seed)

        def make(folder: Path) -> None:
            from examples.minibench.modality_results import donors_and_unmerged
            from examples.minibench.results import write_results

            write_results(donors_and_unmerged(models.folder(self.out), questions.folder(self.out), seed), folder)

        return Product(f"modality-test-unmerged-{seed}", VERSIONS["test"], {}, make, (models, questions))


def _strength(method: str) -> float | None:
    """The published one."""
    return BY_NAME[method].settings[WAY].strength
