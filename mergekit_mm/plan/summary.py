"""What is done with the tensors of each role, counted for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, TensorPlan


def lines_by_role(tensors: Iterable[TensorPlan], kept_words: Callable[[Role], str]) -> Iterator[str]:
    """A line for each role that has tensors: `norms  10 kept as in base`.

    kept_words: what comes before the name of a model whose tensors of a role are taken as they are.
    """
    counts: dict[Role, Counter[str]] = {}
    for tensor in tensors:
        counts.setdefault(tensor.info.role, Counter())[_done(tensor, kept_words)] += 1
    for role in Role:
        if found := counts.get(role):
            in_order = sorted(found, key=lambda done: (done.startswith(kept_words(role)), done == "copied", done))
            yield f"{role.value:<15} " + "; ".join(f"{found[done]} {done}" for done in in_order)


def _done(tensor: TensorPlan, kept_words: Callable[[Role], str]) -> str:
    match tensor.shared_action:
        case Keep(model):
            return f"{kept_words(tensor.info.role)} {model}"
        case Average():
            return "mean of the experts"
        case Merge(method):
            return method if len(tensor.inputs) > 1 else "copied"
        case other:
            return str(other)
