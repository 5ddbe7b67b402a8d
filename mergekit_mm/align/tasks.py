"""Samples from tasks of lm-eval: what documents ask, without what they answer."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from mergekit.config import MergeConfiguration

from mergekit_mm.align.samples import Sample, from_media, meant, short_name
from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.questions import Questions
from mergekit_mm.plan.inputs import name_in_config

LOG = logging.getLogger(__name__)
_SHORTEST = 3  # letters that a word must have to be found as the beginning of another


def read_tasks(
    find: Callable[[str], Sequence[Questions]],
    named: Iterable[tuple[str | None, str]],
    experts: Sequence[str],
    per_task: int,
    seed: int,
    tell: Callable[[str], None],
) -> list[Sample]:
    """Samples from tasks, for the expert that is named with each, or that the names of task and experts tell.

    A sample has the prompt and the media that lm-eval would give the model `mllm` for the document, and what ends an
    answer to it there, and nothing else of it. No example with an answer stands before the question.

    find: returns the questions of each task that a name means. named: an expert, or None, and such a name. experts: by
    their names in the config. per_task: how many documents are drawn of each task, by `seed`; equal ones count once,
    and of a task that has fewer all are taken.

    Raises:
        MergeError: the expert of a task is unknown. EvaluationError: a task, or its data, cannot be had.
    """
    found: list[Sample] = []
    for expert, name in named:
        owner = None if expert is None else meant(expert, experts, f"--samples-from {expert}={name}")
        for asked in find(name):
            to = owner or guess((name, asked.name), experts)
            drawn = _drawn(asked, to, per_task, seed)
            how = "" if owner else ", as their names tell"
            tell(f"{_source(asked)}: {len(drawn)} of {len(asked)} documents for {to}{how}")
            _warn(asked)
            found += drawn
    return found


def experts_in(config: MergeConfiguration) -> list[str]:
    """All models of a merge but its base, by their names in the config."""
    return sorted(name_in_config(model) for model in config.referenced_models() if model != config.base_model)


def _drawn(asked: Questions, expert: str, count: int, seed: int) -> list[Sample]:
    order = random.Random(f"{seed} {asked.name}").sample(range(len(asked)), len(asked))
    found: dict[str, Sample] = {}
    for sample in _samples(asked, expert, order):
        found.setdefault(sample.digest, sample)
        if len(found) == count:
            break
    return list(found.values())


def _samples(asked: Questions, expert: str, documents: Iterable[int]) -> Iterator[Sample]:
    for question in (asked[document] for document in documents):
        where = f"{asked.name}, document {question.document} of {asked.split}"
        yield from_media(expert, question.prompt, where, _source(asked), question.media, question.until)


def _source(asked: Questions) -> str:
    return f"{asked.name}, split {asked.split}{' (which it is scored on)' if asked.is_scored else ''}"


def _warn(asked: Questions) -> None:
    if asked.examples:
        LOG.warning(f"{asked.name}: asked without its {asked.examples} examples, which have answers.")
    if asked.is_scored or asked.split.startswith("test"):
        LOG.warning(
            f"{asked.name}, split {asked.split}: models are scored by these documents, and a score on them tells "
            "nothing of a model that was aligned with them. Take another split if there is one (--split)."
        )


def guess(names: Sequence[str], experts: Sequence[str]) -> str:
    """The one of `experts` that a task belongs to, by the words of its `names`, the likeliest first.

    Words that all experts share tell nothing. A name belongs to the expert of which it has a word, such as `ocr`; or
    else to the one of which a word begins like one of its own, as `chartqa` does like `chart`.

    Raises:
        MergeError: the names tell none, or several.
    """
    if len(experts) == 1:
        return experts[0]
    words = {expert: _words(short_name(expert)) for expert in experts}
    shared = set.intersection(*words.values())
    for name in names:
        for alike in (_equal, _begins):
            found = [
                expert
                for expert, own in words.items()
                if any(alike(one, other) for one in own - shared for other in _words(name))
            ]
            if len(found) == 1:
                return found[0]
            if found:
                break
    raise MergeError(
        f"The names do not tell which expert the task {names[-1]} is for: write --samples-from EXPERT={names[-1]}, "
        f"EXPERT being one of {', '.join(experts)}."
    )


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _equal(one: str, other: str) -> bool:
    return one == other


def _begins(one: str, other: str) -> bool:
    return min(len(one), len(other)) >= _SHORTEST and (one.startswith(other) or other.startswith(one))
