"""The products that ask questions: of validation to look and to choose, of test once at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.minibench.methods import Method
from examples.minibench.products import Product
from examples.minibench.results import Result, write_results

# To be raised when the code of a stage makes something else from the same settings.
VERSIONS = {"validation": "2", "choice": "1", "test": "2"}


@dataclass(frozen=True)
class ExpertSet:
    """The experts of one base, way of training and seed: what a merge is made of."""

    base: int
    way: str
    seed: int
    start: Product  # the base itself
    experts: Sequence[Product]  # one for each capability

    @property
    def name(self) -> str:
        """Such as `0-lora-2`."""
        return f"{self.base}-{self.way}-{self.seed}"


@dataclass(frozen=True)
class Asking:
    """Products that ask questions about `material`.

    counts: by split, how many of each capability. grid: the strengths that are tried for a method.
    """

    material: Product
    counts: Mapping[str, int]
    grid: Sequence[float]
    out: Path

    def blind(self, split: str) -> Product:
        """The scores of the most frequent replies."""

        def make(folder: Path) -> None:
            from examples.minibench.scores import ask_blind  # local: torch and lm-eval are slow to import

            scores = ask_blind(self.files, split, self.counts[split])
            write_results([Result("blind", "blind", split, scores)], folder)

        return Product(f"{split}-blind", VERSIONS[split], {"asked": self.counts[split]}, make, (self.material,))

    def scores(self, split: str, model: Product, **about: Any) -> Product:
        """The scores of a base, an expert or a mixture. about: what `Result` has about it."""

        def make(folder: Path) -> None:
            from examples.minibench.scores import ask

            base = next((each.folder(self.out) for each in model.needs if each.name.startswith("base-")), None)
            scores = ask(self.files, model.folder(self.out), base, split, self.counts[split])
            write_results([Result(**about, split=split, scores=scores)], folder)

        needs = (model, self.material)
        return Product(f"{split}-{model.name}", VERSIONS[split], {"asked": self.counts[split]}, make, needs)

    def choice(self, experts: ExpertSet, method: Method) -> Product:
        """The scores of a method's merges on validation questions at each strength of the grid."""

        def make(folder: Path) -> None:
            from examples.minibench.merging import try_strengths

            try_strengths(self.merge(experts, method), self.grid, self.files, self.counts["validation"], folder)

        settings = {"recipe": method.recipe(experts.way, 1.0), "grid": self.grid}
        return self._of_merges("choice", "validation", experts, method, settings, make)

    def test(self, experts: ExpertSet, method: Method) -> Product:
        """The scores of a method's merges on test questions at the published and at the chosen strength."""
        published = method.settings[experts.way].strength
        choice = None if published is None else self.choice(experts, method)

        def make(folder: Path) -> None:
            from examples.minibench.merging import examine

            chosen = choice.folder(self.out) if choice else None
            examine(self.merge(experts, method), chosen, self.files, self.counts["test"], folder)

        settings = {"recipe": method.recipe(experts.way, published)}
        return self._of_merges("test", "test", experts, method, settings, make, *([choice] if choice else []))

    def _of_merges(
        self,
        stage: str,
        split: str,
        experts: ExpertSet,
        method: Method,
        settings: Mapping[str, Any],
        make: Any,
        *needs: Product,
    ) -> Product:
        name = f"{stage}-{experts.base}-{method.name}-{experts.way}-{experts.seed}"
        parts = (self.material, experts.start, *experts.experts, *needs)
        return Product(name, VERSIONS[stage], {**settings, "asked": self.counts[split]}, make, parts)

    def merge(self, experts: ExpertSet, method: Method) -> Any:
        """What merges a set of experts by a method."""
        from examples.minibench.merging import Merge

        folders = [each.folder(self.out) for each in experts.experts]
        return Merge(method, experts.start.folder(self.out), folders, experts.base, experts.way, experts.seed)

    @property
    def files(self) -> Path:
        """The folder of the material's parquet files."""
        return self.material.folder(self.out) / "minibench"
