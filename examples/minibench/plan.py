"""The settings of the benchmark, and the products of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from examples.common.commands import GRID
from examples.common.training import Stage
from examples.minibench import material, packages
from examples.minibench.material import CAPABILITIES
from examples.minibench.merging import Merge
from examples.minibench.methods import Method, methods
from examples.minibench.model import Size
from examples.minibench.products import Product, is_finished
from examples.minibench.results import Result, read_results

STAGES = ("material", "base", "experts", "validation", "choice", "test")
WAYS = ("full", "lora")
MIXTURE = "mixture"  # an expert for all capabilities: the upper reference
# To be raised when the code of a stage makes something else from the same settings.
VERSIONS = {"material": "1", "base": "1", "expert": "1", "validation": "2", "choice": "1", "test": "1"}


@dataclass(frozen=True)
class Plan:
    """All settings that the results depend on. `Stage` has steps, conversations per step and the learning rate."""

    counts: dict[str, int]  # questions of each capability by split
    base_share: float  # of the training pictures, which the base learns from; experts learn from all
    size: Size
    base: Stage
    full: Stage
    lora: Stage
    rank: int
    bases: int
    seeds: int  # of experts on the first base; any other base has experts of one seed
    asked: int  # validation questions of each capability


FULL = Plan(
    counts={"train": 12000, "validation": 400, "test": 1000, "calibration": 64},
    base_share=0.5,
    size=Size(),
    base=Stage(4000, 30, 1.5e-3),
    full=Stage(200, 30, 2e-4),
    lora=Stage(200, 30, 1e-3),
    rank=8,
    bases=2,
    seeds=3,
    asked=400,
)
QUICK = replace(
    FULL,
    counts={"train": 1500, "validation": 100, "test": 100, "calibration": 16},
    size=Size(vision_width=96, vision_layers=3, width=96, layers=3, mlp=256),
    base=Stage(400, 30, 2e-3),
    full=Stage(30, 20, 5e-4),
    lora=Stage(30, 20, 2e-3),
    bases=1,
    seeds=1,
    asked=60,
)


class ExpertSet(NamedTuple):
    """The experts of one base, way of training and seed: what a merge is made of."""

    base: int
    way: str
    seed: int


class Products:
    """The products of a plan by stage. A later stage adds a method here and its name to `STAGES`."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out

    def stage(self, name: str) -> list[Product]:
        """The products of a stage."""
        every: dict[str, Callable[[], list[Product]]] = {
            "material": lambda: [self.material()],
            "base": lambda: [self.base(seed) for seed in range(self.plan.bases)],
            "experts": self.experts,
            "validation": lambda: self.asked("validation"),
            "choice": lambda: [self.choice(*each) for each in self.merges() if each[1].settings[each[0].way].strength],
            "test": lambda: [*self.asked("test"), *(self.test(*each) for each in self.merges())],
        }
        return every[name]()

    def material(self) -> Product:
        """The parquet files of all splits."""

        def make(folder: Path) -> None:
            material.write(folder / "minibench", self.plan.counts, seed=0)

        settings = {"counts": self.plan.counts, "seed": 0, "packages": packages.versions()}
        return Product("material", VERSIONS["material"], settings, make)

    def base(self, seed: int) -> Product:
        """The model that all experts of a base start from."""
        plan, source = self.plan, self.material()
        settings = {name: _json(getattr(plan, name)) for name in ("base_share", "size", "base")}

        def make(folder: Path) -> None:
            from examples.minibench.training import make_base  # local: torch and transformers are slow to import

            make_base(source.folder(self.out) / "minibench", plan, seed, folder)

        return Product(f"base-{seed}", VERSIONS["base"], {**settings, "seed": seed}, make, (source,))

    def sets(self) -> list[ExpertSet]:
        """All sets of experts."""
        return [
            ExpertSet(base, way, seed)
            for base in range(self.plan.bases)
            for seed in range(self.plan.seeds if base == 0 else 1)
            for way in WAYS
        ]

    def experts(self) -> list[Product]:
        """The experts of each capability and the mixtures, by full fine-tuning and by LoRA."""
        return [
            self.expert(each.base, capability, each.way, each.seed)
            for each in self.sets()
            for capability in (*CAPABILITIES, MIXTURE)
        ]

    def expert(self, base: int, capability: str, way: str, seed: int) -> Product:
        """One expert; `MIXTURE` learns all capabilities, in as many steps as all the experts together."""
        plan, start, source = self.plan, self.base(base), self.material()
        stage = getattr(plan, way)
        if capability == MIXTURE:
            stage = replace(stage, steps=stage.steps * len(CAPABILITIES))
        settings = {"stage": _json(stage), "seed": seed, **({"rank": plan.rank} if way == "lora" else {})}

        def make(folder: Path) -> None:
            from examples.minibench.training import make_expert

            chosen = CAPABILITIES if capability == MIXTURE else (capability,)
            rank = plan.rank if way == "lora" else None
            parts = (source.folder(self.out) / "minibench", start.folder(self.out))
            make_expert(*parts, chosen, stage, rank, seed, folder)

        return Product(f"expert-{base}-{capability}-{way}-{seed}", VERSIONS["expert"], settings, make, (start, source))

    def asked(self, split: str) -> list[Product]:
        """The scores of all models but merges, and without looking at the pictures."""
        bases = [self.scores(split, self.base(n), kind="base", name="base", base=n) for n in range(self.plan.bases)]
        experts = [
            self.scores(
                split,
                self.expert(each.base, capability, each.way, each.seed),
                kind="mixture" if capability == MIXTURE else "expert",
                name=capability,
                **each._asdict(),
            )
            for each in self.sets()
            for capability in (*CAPABILITIES, MIXTURE)
        ]
        return [self.blind(split), *bases, *experts]

    def count(self, split: str) -> int:
        """How many questions of each capability are asked."""
        return self.plan.asked if split == "validation" else self.plan.counts[split]

    def blind(self, split: str) -> Product:
        """The scores of the most frequent replies."""
        source, count = self.material(), self.count(split)

        def make(folder: Path) -> None:
            from examples.minibench.results import write_results
            from examples.minibench.scores import ask_blind

            scores = ask_blind(source.folder(self.out) / "minibench", split, count)
            write_results([Result("blind", "blind", split, scores)], folder)

        return Product(f"{split}-blind", VERSIONS[split], {"asked": count}, make, (source,))

    def scores(self, split: str, model: Product, **about: Any) -> Product:
        """The scores of a model. about: what `Result` has about it."""
        source, count = self.material(), self.count(split)

        def make(folder: Path) -> None:
            from examples.minibench.results import write_results
            from examples.minibench.scores import ask

            base = next((each.folder(self.out) for each in model.needs if each.name.startswith("base-")), None)
            scores = ask(source.folder(self.out) / "minibench", model.folder(self.out), base, split, count)
            write_results([Result(**about, split=split, scores=scores)], folder)

        return Product(f"{split}-{model.name}", VERSIONS[split], {"asked": count}, make, (model, source))

    def merges(self) -> list[tuple[ExpertSet, Method]]:
        """All sets of experts with each method for their way of training."""
        return [(each, method) for each in self.sets() for method in methods(each.way)]

    def choice(self, experts: ExpertSet, method: Method) -> Product:
        """The scores of a method's merges on validation questions at each strength of the grid."""
        needs, count = self._merged(experts), self.count("validation")

        def make(folder: Path) -> None:
            from examples.minibench.merging import try_strengths

            material = self.material().folder(self.out) / "minibench"
            try_strengths(self._merge(experts, method), material, count, folder)

        settings = {"recipe": method.recipe(experts.way, 1.0), "grid": GRID, "asked": count}
        return Product(_merge_name("choice", experts, method), VERSIONS["choice"], settings, make, needs)

    def test(self, experts: ExpertSet, method: Method) -> Product:
        """The scores of a method's merges on test questions at the published and at the chosen strength."""
        published, count = method.settings[experts.way].strength, self.count("test")
        choice = None if published is None else self.choice(experts, method)

        def make(folder: Path) -> None:
            from examples.minibench.merging import examine

            material = self.material().folder(self.out) / "minibench"
            chosen = choice.folder(self.out) if choice else None
            examine(self._merge(experts, method), chosen, material, count, folder)

        settings = {"recipe": method.recipe(experts.way, published), "asked": count}
        needs = (*self._merged(experts), *([choice] if choice else []))
        return Product(_merge_name("test", experts, method), VERSIONS["test"], settings, make, needs)

    def _merged(self, experts: ExpertSet) -> tuple[Product, ...]:
        """What a merge is made from: the material, the base and an expert for each capability."""
        base, way, seed = experts
        return (self.material(), self.base(base), *(self.expert(base, each, way, seed) for each in CAPABILITIES))

    def _merge(self, experts: ExpertSet, method: Method) -> Merge:
        _, base, *others = (each.folder(self.out) for each in self._merged(experts))
        return Merge(method, base, others, experts.base, experts.way, experts.seed)

    def results(self) -> list[Result]:
        """All that has been measured so far, on both splits."""
        asking = (product for stage in ("validation", "choice", "test") for product in self.stage(stage))
        folders = (product.folder(self.out) for product in asking)
        return [result for folder in folders if folder.exists() for result in read_results(folder)]

    def earlier_looks(self) -> list[Path]:
        """The folders of answers to test questions by models of other settings: looks before this one."""
        own = {product.folder(self.out) for product in self.stage("test")}
        finished = (file.parent for file in self.out.glob("test-*/results.json"))
        return sorted(folder for folder in finished if folder not in own and is_finished(folder))


def _merge_name(stage: str, experts: ExpertSet, method: Method) -> str:
    return f"{stage}-{experts.base}-{method.name}-{experts.way}-{experts.seed}"


def _json(value: Any) -> Any:
    return value if isinstance(value, (int, float, dict)) else asdict(value)
