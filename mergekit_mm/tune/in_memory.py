"""One loaded model that becomes each candidate in turn: its tensors are computed by the tasks of the merge itself.

So the model is what `mergekit-yaml` writes for the candidate's config, bit for bit; no other model is written but the
first of each architecture, from which the model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from mergekit.options import MergeOptions

from mergekit_mm.align.answers import release
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.evaluation.model.weights import Weights
from mergekit_mm.execution.values import values
from mergekit_mm.merge import run_multimodal_merge
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.tensor_plan import Keep, TensorPlan
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tune.candidates import Candidate


class InMemory:
    """The model in memory, if there is one yet, and the plans of the tensors that it holds, by their names there."""

    def __init__(self, work: Path, options: MergeOptions, solutions: Solutions, loader: Callable[[str], MLLM]) -> None:
        """work: the folder for models that are loaded. loader: loads the model in a directory."""
        self._work, self._solutions, self._loader = work, solutions, loader
        self._options = options.model_copy(update={"quiet": True, "write_model_card": False})
        self._architecture = ""  # of the loaded model
        self._lm: MLLM | None = None
        self._weights: Weights | None = None
        self._held: dict[str, TensorPlan] = {}

    def become(self, candidate: Candidate, plan: MergePlan) -> MLLM:
        """The model with the weights of a candidate, whose plan is given.

        Raises:
            MergeError: the merge is refused, or the model as it is loaded does not hold what the merge changes.
        """
        lm, weights = self._loaded(candidate, plan)
        compiler = Compiler(plan, self._options, solutions=self._solutions)
        tasks = compiler.to_memory()
        planned = {name: plan[name] for name in tasks}
        wanted = {name: task for name, task in tasks.items() if self._held.get(name) != planned[name]}
        self._held = {}  # nothing is known of the model while it is between two candidates
        for name, tensor in values(compiler, wanted):
            if not weights.put(name, tensor):
                _require_unheard(plan, name)
        self._held = planned
        return lm

    def _loaded(self, candidate: Candidate, plan: MergePlan) -> tuple[MLLM, Weights]:
        """The model, loaded anew if none of this architecture is there; its weights may be those of any candidate."""
        architecture = _architecture(plan, self._solutions.key)
        if self._lm is None or self._weights is None or architecture != self._architecture:
            self._lm = self._weights = None
            self._held = {}
            release()
            start = self._work / f"start-{architecture}"
            if not start.is_dir():  # a directory appears only once it is complete
                with system_errors(start):
                    run_multimodal_merge(
                        candidate.config, str(start), self._options, candidate.source, solutions=self._solutions
                    )
            self._lm = self._loader(str(start))
            self._weights = Weights(self._lm)
            self._architecture = architecture
        return self._lm, self._weights


def _architecture(plan: MergePlan, key: str) -> str:
    """Equal for plans of one config (`key`) whose models have the same tensors in the same dtypes."""
    tensors = [(o.name, list(o.like.shape), str(plan.written_dtype(o.like))) for o in plan.outputs]
    return hashlib.sha256(json.dumps([key, sorted(tensors)]).encode()).hexdigest()[:16]


def _require_unheard(plan: MergePlan, name: str) -> None:
    """MergeError unless a tensor that the loaded model does not hold is one that cannot change what it writes.

    Of a model that speaks only the part that answers in text is loaded; and some files hold tensors of no module.
    """
    speaks = any(tensor.name.startswith("thinker.") for tensor in plan.tensors)
    if (speaks and not name.startswith("thinker.")) or isinstance(plan[name].action, Keep):
        return
    raise MergeError(
        f"The merge changes {name}, which the model as transformers loads it does not hold: its methods and strengths "
        "can be compared by `mergekit-mm sweep` and `lm_eval`."
    )
