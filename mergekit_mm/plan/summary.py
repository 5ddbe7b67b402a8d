"""The summary of a plan for people: the actions on the tensors of each role, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, TensorPlan


def lines_by_role(tensors: Iterable[TensorPlan], words_for_kept: Callable[[Role], str]) -> Iterator[str]:
    """A line for each role that has tensors: `norms  10 kept as in base`.

    What is merged comes before what is kept, and models come in the order in which the output has their tensors: it
    does not depend on their paths.

    words_for_kept: gives the words before the name of the model from which tensors of a role are taken unchanged.
    """
    counts: dict[Role, Counter[tuple[int, str]]] = {}
    for tensor in tensors:
        counts.setdefault(tensor.info.role, Counter())[_action_words(tensor, words_for_kept)] += 1
    for role in Role:
        if of_role := counts.get(role):
            merged_first = sorted(of_role, key=lambda words: words[0])
            yield f"{role.value:<15} " + "; ".join(f"{of_role[words]} {words[1]}" for words in merged_first)


def _action_words(tensor: TensorPlan, words_for_kept: Callable[[Role], str]) -> tuple[int, str]:
    """The place in a line and the few words by which tensors of an action are counted."""
    match tensor.shared_action:
        case Average():
            return 0, "mean of the experts"
        case Merge(method):
            return (2, method) if len(tensor.inputs) > 1 else (1, "copied")
        case Keep(model):
            return 3, f"{words_for_kept(tensor.info.role)} {model}"
        case other:
            return 4, str(other)
