"""The report of a plan, from what has been made of it so far."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from examples.minibench.evidence.board import Ablation, Groups, Rows
from examples.minibench.evidence.report import About, write_report
from examples.minibench.evidence.task_vectors import Relation, averaged, relations
from examples.minibench.material import CAPABILITIES
from examples.minibench.methods import ALONE, CUMULATIVE, METHODS
from examples.minibench.modalities import SPLITS, ModalityProducts
from examples.minibench.plan import STAGES, WAYS, Products

REPORT = "report"  # the stage, which is no product: it is cheap, and always made anew
ROWS = Rows(
    tuple(method.name for method in METHODS if method.group == "method"),
    {way: Ablation(CUMULATIVE[way], ALONE[way]) for way in WAYS},
)


def make_report(products: Products, folder: Path, command: str) -> Path:
    """Write the report into a folder, in the place of what is there. Returns the path of `report.md`.

    SystemExit: there are no answers to test questions yet.
    """
    modalities = ModalityProducts(products.plan.modalities, products.out)
    results = [*products.results(), *products.alignments().results(), *(about_modalities := modalities.results())]
    if not any(each.split == "test" and each.seed is not None for each in results):
        raise SystemExit("there are no answers of experts or merges to test questions to report: make the stage test")
    noted = ("Questions about modalities that share a medium are resampled together.",) if about_modalities else ()
    about = About(
        command,
        looks=1 + most_earlier_looks(products),
        seconds=dict(_seconds(products)),
        missing=tuple(_missing(products)),
        settings=asdict(products.plan),
        notes=noted,
    )
    groups = media_of_questions(modalities.settings.counts["test"]) if about_modalities else None
    shutil.rmtree(folder, ignore_errors=True)
    return write_report(results, folder, about, ROWS, task_vector_relations(products), groups)


def most_earlier_looks(products: Products) -> int:
    """How often a model of other settings was asked test questions, for the model with most of them."""
    names = Counter(folder.name.rpartition(".")[0] for folder in products.earlier_looks())
    return max(names.values(), default=0)


def task_vector_relations(products: Products) -> list[Relation]:
    """Of the experts of each way, means over the runs whose experts exist."""
    found = []
    for way in WAYS:
        runs = []
        for each in (each for each in products.sets() if each.way == way):
            base, *experts = [part.folder(products.out) for part in (each.start, *each.experts)]
            if all(folder.exists() for folder in (base, *experts)):
                runs.append(relations(way, base, dict(zip(CAPABILITIES, experts, strict=True))))
        found += averaged(runs) if runs else []
    return found


def media_of_questions(count: int) -> Groups:
    """For each sort of question about modalities the medium of each question: its image if it has one, else its first.

    Media serve several questions each, most of all images, also of different sorts; questions about two media are alike
    by the one that is used most. A medium has one number in all sorts.
    """
    from examples.omni.scores import questions  # local: it imports torch and transformers

    found, numbers = {}, dict[tuple[str, str], int]()
    for column, rows in questions(SPLITS["test"], count).items():
        media = [next((each for each in row.media if each.modality == "image"), row.media[0]) for row in rows]
        found[column] = [numbers.setdefault((each.modality, str(each.source)), len(numbers)) for each in media]
    return found


def _seconds(products: Products) -> Iterator[tuple[str, float]]:
    """CPU seconds of each stage, as far as they are known."""
    for stage in STAGES:
        known = [each.cpu_seconds(products.out) for each in products.stage(stage)]
        if any(each is not None for each in known):
            yield stage, sum(each or 0 for each in known)


def _missing(products: Products) -> Iterator[str]:
    """The stages of which not all is made."""
    for stage in STAGES:
        needed = products.stage(stage)
        if lacking := sum(not each.folder(products.out).exists() for each in needed):
            yield f"{lacking} of {len(needed)} products of the stage `{stage}`"
