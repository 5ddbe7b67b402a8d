"""The settings of the benchmark, and the products of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from examples.common.commands import GRID
from examples.common.training import Stage
from examples.minibench import material, packages
from examples.minibench.aligned import FULL as FULL_ALIGNED
from examples.minibench.aligned import QUICK as QUICK_ALIGNED
from examples.minibench.aligned import Aligned
from examples.minibench.aligned_products import TEST as ALIGNED_TEST
from examples.minibench.aligned_products import AlignedProducts
from examples.minibench.asking import Asking, ExpertSet
from examples.minibench.material import CAPABILITIES
from examples.minibench.methods import METHODS, Method, methods
from examples.minibench.modalities import FULL as FULL_MODALITIES
from examples.minibench.modalities import QUICK as QUICK_MODALITIES
from examples.minibench.modalities import Modalities, ModalityProducts
from examples.minibench.model import Size
from examples.minibench.products import Product, is_finished
from examples.minibench.results import Result, read_results

STAGES = ("material", "tower", "base", "experts", "validation", "choice", "test", "aligned", "modalities")
WAYS = ("full", "lora")
MIXTURE = "mixture"  # an expert for all capabilities: the upper reference
# To be raised when the code of a stage makes something else from the same settings.
VERSIONS = {"material": "3", "tower": "1", "base": "1", "expert": "2"}


@dataclass(frozen=True)
class Plan:
    """All settings that the results depend on. `Stage` has steps, conversations per step and the learning rate."""

    counts: dict[str, int]  # pictures of each capability by split; one question about each that is not for training
    base_kinds: dict[str, tuple[str, ...]]  # of question, by capability, which a base learns to answer
    rare: float  # share of the training pictures of which a base learns from questions of all kinds
    size: Size
    tower: Stage
    tower_parts: dict[str, int]  # of each batch of the tower that a capability's pictures are
    alignment: Stage
    base: Stage
    full: Stage
    lora: Stage
    rank: int
    rehearsed: float  # share of what an expert learns from that its base has learned of other capabilities
    bases: int
    seeds: int  # of experts on the first base; any other base has experts of one seed
    asked: int  # validation questions of each capability
    methods: tuple[str, ...]  # names of entries of `METHODS`
    grid: tuple[float, ...]  # the strengths that are tried for each method
    aligned: Aligned
    modalities: Modalities


FULL = Plan(
    counts={"train": 4000, "validation": 100, "test": 600, "calibration": 64},
    # Experts find something to add: kinds of question that a base has hardly seen, and that are learned fast.
    base_kinds={
        "vqa": ("what", "exists"),
        "chart": ("extremum",),
        "ocr": ("handwriting",),
        "geometry": ("count", "compare"),
        "grounding": ("side",),
    },
    rare=0.03,
    size=Size(),
    tower=Stage(2600, 66, 3e-3),
    tower_parts={"vqa": 1, "chart": 1, "ocr": 2, "geometry": 1, "grounding": 1},  # letters are hardest to learn
    alignment=Stage(1200, 60, 3e-3),
    base=Stage(700, 60, 2e-3),
    full=Stage(400, 48, 1.5e-3),
    lora=Stage(400, 48, 5e-3),
    rank=8,
    rehearsed=0.5,
    bases=2,
    seeds=3,
    asked=100,
    methods=tuple(method.name for method in METHODS),
    grid=GRID,
    aligned=FULL_ALIGNED,
    modalities=FULL_MODALITIES,
)
QUICK = replace(
    FULL,
    counts={"train": 1500, "validation": 60, "test": 100, "calibration": 16},
    tower=Stage(400, 66, 4e-3),
    alignment=Stage(200, 60, 3e-3),
    base=Stage(200, 60, 2e-3),
    full=Stage(30, 20, 5e-4),
    lora=Stage(30, 20, 2e-3),
    bases=1,
    seeds=1,
    asked=60,
    methods=("linear", "task_arithmetic", "ties", "tsv", "wudi", "optmerge", "swudi"),
    grid=(0.1, 0.3, 1.0),
    aligned=QUICK_ALIGNED,
    modalities=QUICK_MODALITIES,
)


class Products:
    """The products of a plan by stage. A later stage adds a method here and its name to `STAGES`."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out

    def stage(self, name: str) -> list[Product]:
        """The products of a stage."""
        every: dict[str, Callable[[], list[Product]]] = {
            "material": lambda: [self.material()],
            "tower": lambda: [self.tower()],
            "base": lambda: [
                *(self.aligned(seed) for seed in range(self.plan.bases)),
                self.features(),
                *(self.base(seed) for seed in range(self.plan.bases)),
            ],
            "experts": self.experts,
            "validation": lambda: self.asked("validation"),
            "choice": lambda: [
                self.asking().choice(experts, method)
                for experts, method in self.merges()
                if method.settings[experts.way].strength is not None
            ],
            "test": lambda: [*self.asked("test"), *(self.asking().test(*each) for each in self.merges())],
            "aligned": lambda: self.alignments().all(),
            "modalities": ModalityProducts(self.plan.modalities, self.out).all,
        }
        return every[name]()

    def material(self) -> Product:
        """The parquet files of all splits."""

        def make(folder: Path) -> None:
            material.write(folder / "minibench", self.plan.counts, seed=0)

        settings = {"counts": self.plan.counts, "seed": 0, "packages": packages.versions()}
        return Product("material", VERSIONS["material"], settings, make)

    def tower(self) -> Product:
        """The vision tower that all bases have."""
        plan, source = self.plan, self.material()

        def make(folder: Path) -> None:
            from examples.minibench.training import (
                make_trained_tower,
            )  # local: torch and transformers are slow to import

            make_trained_tower(source.folder(self.out) / "minibench", plan, 0, folder)

        settings = {name: _json(getattr(plan, name)) for name in ("size", "tower", "tower_parts")}
        return Product("tower", VERSIONS["tower"], settings, make, (source,))

    def aligned(self, seed: int) -> Product:
        """A model that has learned to look, but not to answer questions."""
        plan, source, tower = self.plan, self.material(), self.tower()
        settings = {name: _json(getattr(plan, name)) for name in ("size", "alignment")}

        def make(folder: Path) -> None:
            from examples.minibench.training import make_aligned

            make_aligned(source.folder(self.out) / "minibench", tower.folder(self.out), plan, seed, folder)

        return Product(f"aligned-{seed}", VERSIONS["base"], {**settings, "seed": seed}, make, (source, tower))

    def features(self) -> Product:
        """What the tower makes of the training pictures, which is the same for all bases."""
        source, aligned = self.material(), self.aligned(0)

        def make(folder: Path) -> None:
            from examples.minibench.training import make_features

            make_features(source.folder(self.out) / "minibench", aligned.folder(self.out), folder)

        return Product("features", VERSIONS["base"], {}, make, (source, aligned))

    def base(self, seed: int) -> Product:
        """The model that all experts of a base start from."""
        plan, source, aligned, features = self.plan, self.material(), self.aligned(seed), self.features()

        def make(folder: Path) -> None:
            from examples.minibench.training import make_base

            folders = [part.folder(self.out) for part in (features, aligned)]
            make_base(source.folder(self.out) / "minibench", *folders, plan, seed, folder)

        settings = {name: _json(getattr(plan, name)) for name in ("base_kinds", "rare", "base")}
        return Product(f"base-{seed}", VERSIONS["base"], {**settings, "seed": seed}, make, (source, aligned, features))

    def _trained(self) -> list[tuple[int, str, int]]:
        """Base, way and seed of all experts."""
        return [
            (base, way, seed)
            for base in range(self.plan.bases)
            for seed in range(self.plan.seeds if base == 0 else 1)
            for way in WAYS
        ]

    def experts(self) -> list[Product]:
        """The experts of each capability and the mixtures, by full fine-tuning and by LoRA."""
        return [
            self.expert(base, capability, way, seed)
            for base, way, seed in self._trained()
            for capability in (*CAPABILITIES, MIXTURE)
        ]

    def expert(self, base: int, capability: str, way: str, seed: int) -> Product:
        """One expert; `MIXTURE` learns as much of all capabilities as the experts learn of their own."""
        plan, start, source, features = self.plan, self.base(base), self.material(), self.features()
        stage = getattr(plan, way)
        if capability == MIXTURE:
            stage = replace(stage, steps=round(stage.steps * (1 - plan.rehearsed) * len(CAPABILITIES)))
        settings = {"stage": _json(stage), "seed": seed, **({"rank": plan.rank} if way == "lora" else {})}
        if capability != MIXTURE:
            settings["rehearsed"] = plan.rehearsed

        def make(folder: Path) -> None:
            from examples.minibench.training import make_expert

            rank = plan.rank if way == "lora" else None
            parts = (source.folder(self.out) / "minibench", features.folder(self.out), start.folder(self.out))
            make_expert(*parts, None if capability == MIXTURE else capability, plan, stage, rank, seed, folder)

        return Product(
            f"expert-{base}-{capability}-{way}-{seed}", VERSIONS["expert"], settings, make, (start, source, features)
        )

    def sets(self) -> list[ExpertSet]:
        """What merges are made of: for each base, way and seed the experts of all capabilities."""
        return [
            ExpertSet(base, way, seed, self.base(base), [self.expert(base, each, way, seed) for each in CAPABILITIES])
            for base, way, seed in self._trained()
        ]

    def merges(self) -> list[tuple[ExpertSet, Method]]:
        """All sets of experts with each method for their way of training."""
        return [
            (each, method) for each in self.sets() for method in methods(each.way) if method.name in self.plan.methods
        ]

    def asking(self) -> Asking:
        """What makes the products that ask questions."""
        counts = {"validation": self.plan.asked, "test": self.plan.counts["test"]}
        return Asking(self.material(), counts, self.plan.grid, self.out)

    def alignments(self) -> AlignedProducts:
        """The products of merges that learn from unlabelled samples."""
        return AlignedProducts(self.plan.aligned, self.sets(), self.asking(), self.plan.counts["calibration"])

    def asked(self, split: str) -> list[Product]:
        """The scores of all models but merges, and without looking at the pictures."""
        asking = self.asking()
        bases = [asking.scores(split, self.base(n), kind="base", name="base", base=n) for n in range(self.plan.bases)]
        experts = [
            asking.scores(
                split,
                self.expert(base, capability, way, seed),
                kind="mixture" if capability == MIXTURE else "expert",
                name=capability,
                base=base,
                way=way,
                seed=seed,
            )
            for base, way, seed in self._trained()
            for capability in (*CAPABILITIES, MIXTURE)
        ]
        return [asking.blind(split), *bases, *experts]

    def results(self) -> list[Result]:
        """All that has been measured so far without samples, on both splits."""
        asking = (product for stage in ("validation", "choice", "test") for product in self.stage(stage))
        folders = (product.folder(self.out) for product in asking)
        return [result for folder in folders if folder.exists() for result in read_results(folder)]

    def earlier_looks(self) -> list[Path]:
        """The folders of answers to test questions by models of other settings: looks before this one."""
        own = {product.folder(self.out) for stage in ("test", "aligned", "modalities") for product in self.stage(stage)}
        names = ("test", ALIGNED_TEST, "modality-test")
        finished = (file.parent for name in names for file in self.out.glob(f"{name}-*/results.json"))
        return sorted(folder for folder in finished if folder not in own and is_finished(folder))


def _json(value: Any) -> Any:
    return value if isinstance(value, (int, float, dict)) else asdict(value)
