"""What is done with the tensors of each role, counted for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, TensorPlan


def lines_by_role(tensors: Iterable[TensorPlan], kept_words: Callable[[Role], str]) -> Iterator[str]:
    """A line for each role that has tensors: `norms  10 kept as in base`.

    What is merged comes before what is kept, and models come in the order in which the output has their tensors: it
    does not depend on where they lie.

    kept_words: what comes before the name of a model whose tensors of a role are taken as they are.
    """
    counts: dict[Role, Counter[tuple[int, str]]] = {}
    for tensor in tensors:
        counts.setdefault(tensor.info.role, Counter())[_done(tensor, kept_words)] += 1
    for role in Role:
        if found := counts.get(role):
            in_order = sorted(found, key=lambda done: done[0])
            yield f"{role.value:<15} " + "; ".join(f"{found[done]} {done[1]}" for done in in_order)


def _done(tensor: TensorPlan, kept_words: Callable[[Role], str]) -> tuple[int, str]:
    """The words for what is done with a tensor, after their place in a line; those of one place keep their order."""
    match tensor.shared_action:
        case Average():
            return 0, "mean of the experts"
        case Merge(method):
            return (2, method) if len(tensor.inputs) > 1 else (1, "copied")
        case Keep(model):
            return 3, f"{kept_words(tensor.info.role)} {model}"
        case other:
            return 4, str(other)
