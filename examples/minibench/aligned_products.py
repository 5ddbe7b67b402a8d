"""The products of the stage `aligned`, by `mergekit-mm align`: samples, starts, choices of settings, tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from examples.minibench.aligned import Aligned, Case, Row
from examples.minibench.asking import Asking, ExpertSet
from examples.minibench.material import CAPABILITIES
from examples.minibench.methods import BY_NAME
from examples.minibench.products import Product
from examples.minibench.results import Result, read_results

# To be raised when the code makes something else from the same settings.
VERSIONS = {"samples": "1", "start": "1", "choice": "1", "test": "1"}
TEST = "aligned-test"  # the beginning of the names of all products that ask test questions
_FIRST_DRAW_TO_CHOOSE_BY = 1000  # the draws of the test are other ones, which no setting was chosen by


class AlignedProducts:
    """The products of the stage. Each `make` imports what it needs, as torch and lm-eval are slow to import."""

    def __init__(self, settings: Aligned, sets: Sequence[ExpertSet], asking: Asking, calibration: int) -> None:
        """calibration: how many questions of each capability the material has for samples."""
        self.settings, self.sets, self.asking, self.calibration = settings, sets, asking, calibration
        self.out = asking.out

    def all(self) -> list[Product]:
        """Every product, after those that it needs."""
        return [*self._samples.values(), *self._starts.values(), *self._choices.values(), *self.tests()]

    def tests(self) -> list[Product]:
        """Those that ask test questions."""
        return [self._test(each, row, case) for each in self.sets for row in self.settings.rows for case in row.cases]

    def results(self) -> list[Result]:
        """All that has been measured so far on test questions, and of the starts."""
        folders = [product.folder(self.out) for product in (*self._starts.values(), *self.tests())]
        return [result for folder in folders if folder.exists() for result in read_results(folder)]

    @cached_property
    def _samples(self) -> dict[bool, Product]:
        """The usual samples, and if some case has them those from elsewhere, by whether they are from there."""
        material = self.asking.material

        def usual(folder: Path) -> None:
            from examples.minibench.calibration import write_usual

            write_usual(self.asking.files, folder)

        def elsewhere(folder: Path) -> None:
            from examples.minibench.calibration import write_elsewhere

            write_elsewhere(self.calibration, folder)

        settings = {"asked": self.calibration}
        found = {False: Product("aligned-samples-usual", VERSIONS["samples"], settings, usual, (material,))}
        if any(case.elsewhere for row in self.settings.rows for case in row.cases):
            name = "aligned-samples-elsewhere"
            found[True] = Product(name, VERSIONS["samples"], settings, elsewhere, (material,))
        return found

    @cached_property
    def _starts(self) -> dict[str, Product]:
        """The best merge without data of each set of experts, with its scores on test questions."""
        return {each.name: self._start(each) for each in self.sets}

    def _start(self, experts: ExpertSet) -> Product:
        methods = [BY_NAME[name] for name in self.settings.starts[experts.way]]
        choices = [self.asking.choice(experts, method) for method in methods]
        tests = [self.asking.test(experts, method) for method in methods]

        def make(folder: Path) -> None:
            from examples.minibench.aligned_results import choose_start

            merges = [self.asking.merge(experts, method) for method in methods]
            tried, tested = ([each.folder(self.out) for each in stage] for stage in (choices, tests))
            choose_start(list(zip(merges, tried, tested, strict=True)), folder)

        return Product(f"aligned-start-{experts.name}", VERSIONS["start"], {}, make, tuple(tests), brief=True)

    @cached_property
    def _choices(self) -> dict[tuple[str, str], Product]:
        """For each way of training and each row with several settings, their scores on validation questions.

        They are those of the first set of experts, and hold for all sets of that way.
        """
        first = {each.way: each for each in reversed(self.sets)}
        rows = [row for row in self.settings.rows if len(row.tries) > 1]
        return {(way, row.name): self._choice(experts, row) for way, experts in first.items() for row in rows}

    def _choice(self, experts: ExpertSet, row: Row) -> Product:
        case = self.settings.to_choose

        def make(folder: Path) -> None:
            from examples.minibench.aligned_results import align_and_ask

            draws = range(_FIRST_DRAW_TO_CHOOSE_BY, _FIRST_DRAW_TO_CHOOSE_BY + case.draws)
            align_and_ask(self._alignment(experts, row, case), row.tries, draws, "validation", folder)

        return self._product("choice", "validation", experts, row, case, make, {"tries": row.tries})

    def _test(self, experts: ExpertSet, row: Row, case: Case) -> Product:
        choice = self._choices.get((experts.way, row.name))

        def make(folder: Path) -> None:
            from examples.minibench.aligned_results import align_and_ask, best_options

            options = best_options(read_results(choice.folder(self.out))) if choice else row.tries[0]
            align_and_ask(self._alignment(experts, row, case), [options], range(case.draws), "test", folder)

        settings = {} if choice else {"tries": row.tries}
        return self._product("test", "test", experts, row, case, make, settings, *([choice] if choice else []))

    def _product(
        self,
        stage: str,
        split: str,
        experts: ExpertSet,
        row: Row,
        case: Case,
        make: Callable[[Path], None],
        settings: Mapping[str, Any],
        *needs: Product,
    ) -> Product:
        name = f"aligned-{stage}-{experts.name}-{row.name}-{case.name.replace(' ', '-')}"
        own = {"options": row.options, "on_base": row.on_base, "case": asdict(case), "asked": self.asking.counts[split]}
        parts = (self._starts[experts.name], self._samples[case.elsewhere], *needs)
        return Product(name, VERSIONS[stage], {**own, **settings}, make, parts, brief=True)

    def _alignment(self, experts: ExpertSet, row: Row, case: Case) -> Any:
        from examples.minibench.aligned_results import Alignment

        names = {each: expert.folder(self.out).name for each, expert in zip(CAPABILITIES, experts.experts, strict=True)}
        folders = [self._starts[experts.name].folder(self.out), self._samples[case.elsewhere].folder(self.out)]
        about = {"base": experts.base, "way": experts.way, "seed": experts.seed}
        return Alignment(*folders, names, row, case, about, self.asking.files, self.asking.counts)
