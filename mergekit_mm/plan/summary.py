"""The summary of a plan for people: the actions on the tensors of each role, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, TensorPlan


def lines_by_role(tensors: Iterable[TensorPlan], words_for_kept: Callable[[Role], str]) -> Iterator[str]:
    """A line for each role that has tensors: `norms  10 kept as in base`.

    words_for_kept: gives the words before the name of the model from which tensors of a role are taken unchanged.
    """
    counts: dict[Role, Counter[str]] = {}
    for tensor in tensors:
        counts.setdefault(tensor.info.role, Counter())[_action_words(tensor, words_for_kept)] += 1
    for role in Role:
        if of_role := counts.get(role):
            merged_first = sorted(
                of_role, key=lambda words: (words.startswith(words_for_kept(role)), words == "copied", words)
            )
            yield f"{role.value:<15} " + "; ".join(f"{of_role[words]} {words}" for words in merged_first)


def _action_words(tensor: TensorPlan, words_for_kept: Callable[[Role], str]) -> str:
    """The action of a tensor in the few words by which tensors of a role are counted."""
    match tensor.shared_action:
        case Keep(model):
            return f"{words_for_kept(tensor.info.role)} {model}"
        case Average():
            return "mean of the experts"
        case Merge(method):
            return method if len(tensor.inputs) > 1 else "copied"
        case other:
            return str(other)
