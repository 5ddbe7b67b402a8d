"""What candidates are measured by: labelled questions of lm-eval's tasks, or unlabelled samples of the experts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from mergekit_mm.align.answers import Expert
from mergekit_mm.align.answers import Kept as KeptAnswers
from mergekit_mm.align.inputs import batches, encode, on_device, with_answer
from mergekit_mm.align.objective import divergence
from mergekit_mm.align.samples import Sample
from mergekit_mm.errors import EvaluationError, MergeError
from mergekit_mm.evaluation.model import asked_tasks
from mergekit_mm.evaluation.model.asked_tasks import Questions
from mergekit_mm.evaluation.model.likelihood import logits_of_answers
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.tune.scores import Value, Values

Asked = Mapping[str, Sequence[int]]  # by set: places in the order of its questions


class Judge(Protocol):
    """A measure of a model: sets of questions, each in an order that was drawn, and a value for each of them."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Each set's name and the number of its questions."""

    @property
    def digests(self) -> Mapping[str, str]:
        """Each set's name and a text that changes where its questions, their order or their scoring do."""

    @property
    def unit(self) -> str:
        """What people call a set."""

    @property
    def higher_is_better(self) -> bool: ...

    @property
    def in_percent(self) -> bool:
        """Whether values are fractions, which are shown in percent."""

    @property
    def measures(self) -> Sequence[str]:
        """Sentences on what is measured, for people."""

    @property
    def remarks(self) -> Sequence[str]:
        """Sentences on what was noticed while models were asked."""

    def ask(self, lm: MLLM, asked: Asked) -> Values:
        """The values of a model.

        Raises:
            EvaluationError: a question cannot be asked. MergeError: the model's tokens are not those of an expert, or
                its divergence is not finite.
        """

    def require_comparable(self, values: Values) -> None:
        """EvaluationError if the sets have values whose mean would mean nothing."""


class ByTasks:
    """The metric of each task, question by question."""

    unit = "task"

    def __init__(self, tasks: Sequence[Questions], seed: int, progress: bool) -> None:
        """seed: that by which the questions were ordered.

        Raises:
            EvaluationError: the mean of these metrics means nothing, as a higher value is not always better.
        """
        self._tasks, self._seed, self._progress = tasks, seed, progress
        self._cut: dict[str, tuple[int, int]] = {}  # by task: replies of all models that were cut, and all replies
        lower = [each for each in tasks if not each.higher_is_better]
        if lower and len(lower) < len(tasks):
            raise EvaluationError(
                f"Of {lower[0].scored_by} of {lower[0].name} less is better, of other tasks more: there is no mean of "
                "both. Choose another metric, or leave that task out."
            )
        self.higher_is_better = not lower
        self.in_percent = self.higher_is_better

    @property
    def sizes(self) -> Mapping[str, int]:
        return {each.name: len(each.order) for each in self._tasks}

    @property
    def digests(self) -> Mapping[str, str]:
        return {each.name: f"{each.digest} {each.metric} {each.filter} {self._seed}" for each in self._tasks}

    @property
    def measures(self) -> Sequence[str]:
        found = [f"{each.name}: {each.scored_by} of {len(each.order)} questions ({each.split})" for each in self._tasks]
        if tested := [each.name for each in self._tasks if "test" in each.split.lower()]:
            found.append(
                f"Warning: by their names these are test questions: {', '.join(tested)}. What is chosen on them is no "
                "result on them: report other questions."
            )
        return found

    @property
    def remarks(self) -> Sequence[str]:
        return [
            f"{name}: {cut} of {total} replies, of all candidates together, were not finished when their tokens were "
            "used up (max_gen_toks)."
            for name, (cut, total) in self._cut.items()
            if cut
        ]

    def ask(self, lm: MLLM, asked: Asked) -> Values:
        numbers = {each: [each.order[at] for at in asked[each.name]] for each in self._tasks}
        scored = asked_tasks.ask(lm, numbers, self._progress)
        for name, (cut, total) in scored.cut.items():
            before = self._cut.get(name, (0, 0))
            self._cut[name] = before[0] + cut, before[1] + total
        values: dict[str, dict[int, Value | None]] = {}
        for each in self._tasks:
            own = scored.values[each.name]
            values[each.name] = {
                at: None if (value := own[each.order[at]]) is None else (value, 1.0) for at in asked[each.name]
            }
        return values

    def require_comparable(self, values: Values) -> None:
        for each in self._tasks:
            found = [pair[0] for pair in values[each.name].values() if pair is not None]
            beyond = [value for value in found if not 0 <= value <= 1]
            if beyond and len(self._tasks) > 1:
                raise EvaluationError(
                    f"{each.scored_by} of {each.name} is {beyond[0]:g} for a question. Tasks are averaged, so all of "
                    "them need values from 0 to 1: choose another metric, or this task alone."
                )
            self.in_percent &= not beyond


class ByDivergence:
    """The divergence from each expert at the tokens of its own answers, in nats per token; no labels are needed."""

    unit = "expert"
    higher_is_better, in_percent = False, False

    def __init__(
        self,
        experts: Mapping[str, Expert],
        samples: Mapping[str, Sequence[Sample]],
        answers: KeptAnswers,
        seed: int,
        at_once: int,
        tell: Callable[[str], None],
    ) -> None:
        """experts, samples: by the names of the experts. All experts are asked here, one in memory at a time."""
        self._experts, self._keeper, self._at_once = experts, answers, at_once
        self._samples: dict[str, list[Sample]] = {}
        for name, own in samples.items():
            ordered = sorted(own, key=lambda sample: sample.digest)
            self._samples[name] = random.Random(f"{seed} {name}").sample(ordered, len(ordered))
            answers.ask(experts[name], self._samples[name], tell)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: len(own) for name, own in self._samples.items()}

    @property
    def digests(self) -> Mapping[str, str]:
        asking = self._keeper.asking
        return {
            name: " ".join([self._experts[name].fingerprint, str(asking), *(sample.digest for sample in own)])
            for name, own in self._samples.items()
        }

    @property
    def measures(self) -> Sequence[str]:
        return [f"divergence from {name} on {len(own)} samples" for name, own in self._samples.items()]

    @property
    def remarks(self) -> Sequence[str]:
        return []

    def ask(self, lm: MLLM, asked: Asked) -> Values:
        return {name: self._of_expert(lm, name, places) for name, places in asked.items()}

    def require_comparable(self, values: Values) -> None:
        """Divergences in nats per token can be averaged whatever they are."""

    def _of_expert(self, lm: MLLM, name: str, places: Sequence[int]) -> dict[int, Value | None]:
        samples = [self._samples[name][at] for at in places]
        answers = self._keeper.read(self._experts[name], samples, lm.tokenizer)
        inputs = [with_answer(one, answer.ids) for one, answer in zip(encode(lm, samples), answers, strict=True)]
        values: dict[int, Value | None] = {}
        with torch.inference_mode():
            for indices, batch in batches(inputs, self._at_once):
                ids = [answers[at].ids.tolist() for at in indices]
                for at, logits in zip(indices, logits_of_answers(lm.model, on_device(lm, batch), ids), strict=True):
                    tokens, found = len(answers[at].ids), float(divergence(answers[at], logits))
                    if not math.isfinite(found):
                        raise MergeError(f"its divergence from {name} is {found}")
                    values[places[at]] = found / tokens, float(tokens)
        return values
