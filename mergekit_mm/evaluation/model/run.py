"""What happens in a run besides answering: inputs that cannot be read, replies that are cut, failures.

The response cache is reached through `CacheHook` and `hash_args`, which lm-eval 0.4 has in `lm_eval.api.model`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval.api.model import CacheHook, hash_args

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.checks import MediaChecks
from mergekit_mm.evaluation.model.inputs import by_modality
from mergekit_mm.evaluation.tasks.missing import NoAnswer, NoScore, none_left, of_task, refusal, told

LOG = logging.getLogger(__name__)


def document_of(request: Any) -> str:
    """The document that a request belongs to, as messages name it."""
    return f"{request.task_name}, document {request.doc_id}"


def completed_scores(processes: list[Any]) -> list[Any]:
    """Scores by task and (metric, filter) of several processes, with an empty list where a process has no score.

    What the first process lacks altogether, lm-eval leaves out of the results: a warning names it.
    """
    tasks: list[dict[str, dict[Any, list[Any]]]] = [each for each in processes if isinstance(each, dict)]
    if len(tasks) != len(processes) or not all(isinstance(found, dict) for each in tasks for found in each.values()):
        return processes  # lm-eval gathers other things too, such as samples
    for task in tasks[0]:
        metrics = dict.fromkeys(metric for each in tasks for metric in each[task])
        if lost := [str(metric[0]) for metric in metrics if metric not in tasks[0][task]]:
            LOG.warning(f"{task}: not in the results, as the first process has no such documents: {', '.join(lost)}")
        for each in tasks:
            each[task] = {metric: each[task].get(metric, []) for metric in metrics}
    return processes


def forget_stand_ins(cache: Any) -> None:
    """Remove stand-ins for answers from a response cache (a mapping), in which lm-eval keeps all that it is given."""
    if cache is None:
        return
    for key in [key for key, answer in cache.items() if isinstance(answer, (NoAnswer, NoScore))]:
        del cache[key]
    cache.commit()


class Answers(CacheHook):
    """The answers so far, kept where lm-eval's response cache is off."""

    def __init__(self) -> None:
        super().__init__(None)
        self.found: list[tuple[str, Any, Any]] = []

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self.found.append((attr, req, res))

    def write(self) -> str:
        """Write the answers as a response cache of lm-eval, and return the value of --use_cache that reads it."""
        from sqlitedict import SqliteDict

        name = next(f"mllm_answers_{n}" for n in range(1, 10**6) if not Path(f"mllm_answers_{n}_rank0.db").exists())
        with SqliteDict(f"{name}_rank0.db") as database:
            for attr, req, res in self.found:
                try:
                    database[hash_args(attr, req)] = res
                except TypeError:  # lm-eval's cache takes no media given as arrays
                    continue
            database.commit()
        return name


class Run:
    """What is counted during a run of one model; `facts` go into results.json."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self.answers = Answers()
        self.is_part = False  # of a larger one, which counts what is cut, and goes on after a failure by itself
        self._replies: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._longer: dict[str, float] = {}  # document -> seconds of its longest audio, if that is not heard whole

    # ------------------------------------------------------------------------------------------- before the run

    def examine(self, requests: Sequence[Any]) -> dict[int, Any]:
        """Index of a request that cannot be given to the model -> what stands for its answer.

        EvaluationError: there are such requests and the policy is to stop, or audio is longer than the model hears.
        """
        if not requests:
            return {}
        reader = self._lm.reader
        media = [by_modality(request.args[2]) for request in requests]
        checks = MediaChecks(reader)
        flaws = checks.flaws(media)
        reasons = {document_of(requests[n]): f"{document_of(requests[n])}: {flaw}" for n, flaw in flaws.items()}
        policies = {n: of_task.get(requests[n].task_name, self._lm.missing) for n in flaws}
        documents = len({document_of(request) for request in requests})
        if "error" in policies.values():
            raise refusal(list(reasons.values()), documents)
        if flaws:
            LOG.warning(told(list(reasons.values()), documents))
            self._refuse_empty_tasks(requests, flaws)
        self._unanswered.update(requests[n].task_name for n in flaws)
        checks.measure_audio_window()
        self._check_long_audio(requests, media, flaws, checks)
        return {n: self._stand_in(requests[n], policy) for n, policy in policies.items()}

    def _refuse_empty_tasks(self, requests: Sequence[Any], flaws: dict[int, str]) -> None:
        if self._lm.cache_hook is not self.answers:  # answers to the task's other documents may be in the cache
            return
        left = {request.task_name for n, request in enumerate(requests) if n not in flaws}
        if empty := sorted({request.task_name for request in requests} - left):
            raise none_left(", ".join(empty), next(iter(flaws.values())))

    @staticmethod
    def _stand_in(request: Any, policy: str) -> Any:
        if request.request_type != "loglikelihood":
            answer = NoAnswer()
            answer.policy = policy
            return answer
        if policy == "wrong":
            raise EvaluationError(
                f"{request.task_name} scores likelihoods of choices, among which none is wrong for sure: "
                "use missing=skip, which leaves its documents out"
            )
        return NoScore((float("-inf"), False))

    def _check_long_audio(
        self, requests: Sequence[Any], media: Sequence[Any], flaws: dict[int, str], checks: MediaChecks
    ) -> None:
        window, longer = self._lm.reader.window, {}
        for n, request in enumerate(requests):
            lengths = [checks.audio_seconds(one) for one in media[n]["audio"] if n not in flaws]
            if lengths and window.is_shorter_than(max(lengths)):
                longer[document_of(request)] = max(lengths)
        if not longer or window.seconds is None:
            return
        name = type(self._lm.processor).__name__
        listed = [f"{document}: {seconds:.1f} s" for document, seconds in list(longer.items())[:10]]
        more = [f"... and {len(longer) - 10} more"] if len(longer) > 10 else []
        text = f"{name} hears {window.seconds:.1f} s of audio, and {len(longer)} documents have longer audio:"
        text = "\n  ".join([text, *listed, *more])
        if window.policy == "error":
            raise EvaluationError(
                f"{text}\nTo go on: --model_args long_audio=cut (what is beyond is not heard) or long_audio=chunk "
                "(such audio is given as several)"
            )
        self._longer |= longer
        LOG.warning(f"{text}\n{'The rest is cut off' if window.policy == 'cut' else 'They are given as several'}.")

    # ------------------------------------------------------------------------------------------- during the run

    def count_reply(self, document: str, cut: bool) -> None:
        """Count a reply to a document's request, and whether it was cut."""
        task = document.rpartition(", document ")[0] or document
        self._replies[task] += 1
        self._cut[task] += cut

    def warn_of_cut_replies(self) -> None:
        """Warn of replies that were not finished, by task."""
        for task, count in self._cut.items():
            if count and not self.is_part:
                LOG.warning(
                    f"{task}: {count} of {self._replies[task]} replies were not finished when their tokens were used "
                    "up (max_gen_toks): --gen_kwargs max_gen_toks=... gives them more"
                )

    @contextmanager
    def keeping_answers(self) -> Iterator[None]:
        """While open, a failure leaves the answers so far in a cache for the next run."""
        self.answers.found.clear()
        try:
            yield
        except BaseException:
            if self.is_part:
                raise
            hook = self._lm.cache_hook
            if hook is not self.answers:
                LOG.error("The answers so far are in the cache (--use_cache): the same command goes on from there.")
            elif self.answers.found:
                name = self.answers.write()
                LOG.error(
                    f"The {len(self.answers.found)} answers so far are kept in {name}_rank0.db: the same command with "
                    f"--use_cache {name} goes on from there."
                )
            raise

    def facts(self) -> dict[str, Any]:
        """The entries of the run in results.json. lm-eval asks for them at the end: all counts begin anew."""
        window, untimed = self._lm.reader.window, self._lm.reader.untimed
        found: dict[str, Any] = {
            "replies_cut_at_max_gen_toks": {
                task: {"cut": self._cut[task], "of": count} for task, count in self._replies.items()
            },
            "requests_not_asked": dict(self._unanswered),
        }
        if self._longer:
            documents = {"documents": len(self._longer), "seconds_heard": window.seconds}
            found["long_audio"] = {"policy": window.policy, **documents}
        if untimed:
            found["videos_without_times"] = len(untimed)
        for each in (self._replies, self._cut, self._unanswered, self._longer, untimed):
            each.clear()
        return found
