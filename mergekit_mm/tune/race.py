"""All rounds: each candidate becomes the model in memory and is asked its questions, and the better half goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mergekit_mm.errors import MergeError
from mergekit_mm.plan.as_json import digest
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tune.candidates import Candidate
from mergekit_mm.tune.halving import Round, new_answers
from mergekit_mm.tune.in_memory import InMemory
from mergekit_mm.tune.judges import Judge
from mergekit_mm.tune.kept import Kept
from mergekit_mm.tune.scores import Estimate, Values, difference, estimate


@dataclass
class Entry:
    """A candidate and what is known of it.

    place: among the candidates as they were given. rounds: how many it took part in. questions: of each set, so far.
    """

    candidate: Candidate
    place: int
    values: Values = field(default_factory=dict)
    rounds: int = 0
    questions: int = 0

    @property
    def score(self) -> Estimate:
        return estimate(self.values)


@dataclass(frozen=True)
class Outcome:
    """The candidates, the best first: those of a later round come before those that went out earlier."""

    entries: Sequence[Entry]
    race: Sequence[Round]

    @property
    def chosen(self) -> Entry:
        return self.entries[0]

    @property
    def finalists(self) -> list[Entry]:
        """All that took part in the last round."""
        return [entry for entry in self.entries if entry.rounds == len(self.race)]

    def behind(self, entry: Entry) -> Estimate:
        """The score of an entry minus that of the chosen one, on the questions that both were asked."""
        return difference(entry.values, self.chosen.values)

    @property
    def not_apart(self) -> list[Entry]:
        """Other finalists that are not apart from the chosen one by more than noise."""
        return [entry for entry in self.finalists[1:] if not self.behind(entry).is_apart]


class Race:
    """Runs the rounds, from values that are kept where there are some."""

    def __init__(
        self,
        memory: InMemory,
        judge: Judge,
        planned: Callable[[Candidate], MergePlan],
        kept: Kept,
        key: str,
        tell: Callable[[str], None],
    ) -> None:
        """planned: makes the plan of a candidate. key: of all that decides a value beside plan and question."""
        self._memory, self._judge, self._planned = memory, judge, planned
        self._kept, self._key, self._tell = kept, key, tell
        self.left_out: list[str] = []  # a sentence on each candidate that could not be made or measured

    def run(self, candidates: Sequence[Candidate], race: Sequence[Round]) -> Outcome:
        """All rounds over the candidates, in whose order equals stand.

        Raises:
            MergeError: no candidate can be made and measured. EvaluationError: a question cannot be asked.
        """
        entries = [Entry(candidate, place) for place, candidate in enumerate(candidates)]
        clock = _Clock(new_answers(race, self._judge.sizes), sum(each.candidates for each in race))
        out: list[Entry] = []
        for number, each in enumerate(race, 1):
            counted = f"{len(entries)} candidates, up to {each.questions} questions of each {self._judge.unit}"
            self._tell(f"round {number} of {len(race)}: {counted}")
            asked = [
                entry
                for place, entry in enumerate(entries, 1)
                if self._took_part(entry, each, clock, f"  [{place}/{len(entries)}] {entry.candidate.label}")
            ]
            if not asked:
                raise MergeError("\n".join(["No candidate is left:", *self.left_out]))
            entries = self._ordered(asked)
            if number < len(race):
                left = min(race[number].candidates, len(entries))
                self._tell_who_goes(entries, left)
                entries, out = entries[:left], [*entries[left:], *out]
        return Outcome([*entries, *out], race)

    @property
    def factor(self) -> float:
        """By which values are multiplied where people see them."""
        return 100.0 if self._judge.in_percent else 1.0

    def shown(self, score: Estimate, sign: str = "") -> str:
        """A score or a difference with its interval, in percent where values are fractions."""
        factor, decimals = self.factor, 1 if self._judge.in_percent else 4
        width = "" if score.half_width is None else f" ± {factor * score.half_width:.{decimals}f}"
        return f"{factor * score.value:{sign}.{decimals}f}{width}"

    def _took_part(self, entry: Entry, each: Round, clock: _Clock, label: str) -> bool:
        """Ask an entry the questions of a round; False, with a note, if it cannot be made or measured."""
        try:
            self._ask(entry, each, clock)
        except MergeError as error:
            self.left_out.append(f"Left out: {entry.candidate.label}: {str(error).splitlines()[0]}")
            self._tell(f"{label}: {self.left_out[-1]}")
            return False
        self._tell(f"{label}: {self.shown(entry.score)}{clock}")
        return True

    def _ask(self, entry: Entry, each: Round, clock: _Clock) -> None:
        """Bring an entry's values to the questions of a round; what is kept is not asked again."""
        plan = self._planned(entry.candidate)
        key, sets = f"{digest(plan)[:32]}-{self._key}", self._judge.digests
        known = self._kept.read(key, sets)
        places = {name: range(min(size, each.questions)) for name, size in self._judge.sizes.items()}
        asked = {name: [at for at in own if at not in known[name]] for name, own in places.items()}
        fresh = sum(min(size, each.questions) - min(size, entry.questions) for size in self._judge.sizes.values())
        missing = sum(map(len, asked.values()))
        clock.skip(fresh - missing, visit=not missing)
        if missing:
            with clock.merging():
                lm = self._memory.become(entry.candidate, plan)
            with clock.asking(missing):
                known = self._kept.add(key, sets, self._judge.ask(lm, asked))
        entry.values = {name: {at: known[name][at] for at in own} for name, own in places.items()}
        self._judge.require_comparable(entry.values)
        entry.rounds, entry.questions = entry.rounds + 1, each.questions

    def _ordered(self, entries: Sequence[Entry]) -> list[Entry]:
        """The best first, of equal ones the earlier."""
        sign = -1 if self._judge.higher_is_better else 1
        return sorted(entries, key=lambda entry: (sign * entry.score.value, entry.place))

    def _tell_who_goes(self, entries: Sequence[Entry], left: int) -> None:
        """Tell how many go out, and how many of them might be as good as the best, as far as is known."""
        unsure = [e for e in entries[left:] if not difference(e.values, entries[0].values).is_apart]
        said = f"  the best {left} go on"
        if unsure:
            said += f"; {len(unsure)} of the {len(entries) - left} that do not are within noise of the best"
        self._tell(said)


class _Clock:
    """How long merging and asking took so far, and what that says of the rest."""

    def __init__(self, answers: int, visits: int) -> None:
        self._answers, self._visits = answers, visits  # that are left
        self._merged, self._merging, self._asked, self._asking = 0, 0.0, 0, 0.0
        self._last = ""

    def skip(self, answers: int, visit: bool) -> None:
        """What is kept from an earlier run needs no time."""
        self._answers -= answers
        self._visits -= visit
        self._last = " (kept)" if visit else ""

    def merging(self) -> _Timer:
        return _Timer(self._note_merge)

    def asking(self, answers: int) -> _Timer:
        return _Timer(lambda seconds: self._note_answers(answers, seconds))

    def _note_merge(self, seconds: float) -> None:
        self._merged, self._merging, self._visits = self._merged + 1, self._merging + seconds, self._visits - 1
        self._last = f" ({seconds:.0f} s to merge"

    def _note_answers(self, answers: int, seconds: float) -> None:
        self._asked, self._asking, self._answers = (
            self._asked + answers,
            self._asking + seconds,
            self._answers - answers,
        )
        left = self._visits * self._merging / self._merged + self._answers * self._asking / self._asked
        self._last += f", {seconds:.0f} s to ask; about {_duration(left)} left)"

    def __str__(self) -> str:
        return self._last


class _Timer:
    """A context whose seconds are noted when it ends without an error."""

    def __init__(self, note: Callable[[float], None]) -> None:
        self._note = note

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._note(time.monotonic() - self._began)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def by_variant(entries: Sequence[Entry]) -> Mapping[str, list[Entry]]:
    """The entries of each method, in the order in which the methods first occur, by strength."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.candidate.variant.label, []).append(entry)
    return {label: sorted(own, key=lambda entry: entry.candidate.strength or 0.0) for label, own in found.items()}
