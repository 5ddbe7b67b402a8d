"""DAMC (Chen et al., ACL 2024): what each donor's language model does with the tokens of its own media is kept.

Text goes through the merged weights, of any merge; with task_arithmetic they are the paper's adaptive adjustment, the
base and a weighted sum of deltas. A medium goes through its donor's own matrices. The paper trains two adapters per
donor, one for text and one for media; here both are the one delta that a donor has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from torch import nn

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role
from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.omni.routing import FULL
from mergekit_mm.plan.gathering import Gathering, Job
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.outputs import Output
from mergekit_mm.tasks.deltas import AddDelta, MergeDelta
from mergekit_mm.tasks.factors import SameTensor, SharedFactors, equal_values
from mergekit_mm.tasks.reading import SOURCES, LoadDelta, load, load_delta, read_tensor
from mergekit_mm.tasks.reading import without_adapter as plain
from mergekit_mm.tasks.writing import PickTensor


class _Factored(NamedTuple):
    """A matrix of which owners keep factors."""

    merged: MergeDelta
    experts: tuple[LoadDelta, ...]
    owners: tuple[tuple[str, int], ...]  # owner -> which of the experts; -1 for the base
    rank: int
    shape: tuple[int, ...]


class Decoupling:
    """The linear layers of an omni model's language model in which each owner of a medium has something of its own.

    That is its donor's matrix; or factors, if all donors are adapters of the base's language model and the method makes
    factors of factors.
    """

    def __init__(self, inputs: Inputs, config: MergeConfiguration, stack: str, gathering: Gathering) -> None:
        omni, meta_model = inputs.composition, inputs.base_checkpoint.meta_model
        assert omni is not None
        assert meta_model is not None
        self.inputs, self.stack, self.gathering = inputs, stack, gathering
        self.base, self.method = config.base_model, config.merge_method
        self.owners = {omni.owner(modality): donor for modality, donor in omni.modalities.items()}
        self.linear = {name for name, module in meta_model.model.named_modules() if isinstance(module, nn.Linear)}
        self.adapters = self._adapters_of_base()
        self._own: dict[str, dict[str, Task]] = {}  # merged tensor -> owner -> its donor's
        self._biases: dict[str, dict[str, Task]] = {}  # the same of biases that a policy keeps out of the merge
        self._factored: dict[str, _Factored] = {}
        self.forms: dict[str, Any] = {}  # `routed` of the omni config, once laid out
        self.kept: dict[str, DiskTensor] = {}  # what is written beside the merged weights, once laid out

    # ----------------------------------------------------------------------------------------------------- planning

    def merged(self, job: Job, dtype: str | None, merge: Mapping[str, Any]) -> Task | None:
        """Note what is kept beside one merged tensor; the task that makes it, where that is not the usual one.

        merge: fields of the task that merges it; dtype: in which it reads its inputs.

        Raises:
            MergeError: a tensor in which tokens cannot be told apart, or a donor without a part in the merge.
        """
        if not self._is_routed(job.info):
            return None
        absent = [str(donor) for donor in self.owners.values() if donor not in job.held]
        if absent:
            raise MergeError(f"composition: damc needs {', '.join(absent)}, which takes no part in {job.name}.")
        experts = tuple(model for model in job.held if model != self.base)
        if self.base in job.held and self.adapters.issuperset(experts):
            rank = sum(_rank(model, job.held[model]) or 0 for model in experts)
            base = self._shared_base(job, experts, dtype)
            if rank == 0:
                return base
            (rows, columns), owners = job.info.shape, len(self.owners)
            if rank * (columns + owners * rows) < owners * rows * columns and self._makes_factors(merge):
                return AddDelta(base=base, delta=self._factored_delta(job, experts, rank, merge))
        self._own[job.name] = self._of_donors(job, dtype)
        return None

    def _factored_delta(
        self, job: Job, experts: tuple[ModelReference, ...], rank: int, merge: Mapping[str, Any]
    ) -> MergeDelta:
        """The merged delta as factors; those of the owners are noted."""
        delta = MergeDelta(gather_tensors=self.gathering.together(job, experts, None, experts), over=self.base, **merge)
        deltas = tuple(load_delta(model, job.held[model], job.label, self.gathering.device) for model in experts)
        places = tuple((o, experts.index(d) if d in experts else -1) for o, d in self.owners.items())
        self._factored[job.name] = _Factored(delta, deltas, places, rank, job.info.shape)
        return delta

    def _shared_base(self, job: Job, experts: tuple[ModelReference, ...], dtype: str | None) -> Task:
        """The base's tensor, which is also that of the models under all adapters."""
        base, *twins = (
            load(plain(model), job.held[model], job.label, dtype, self.gathering.device)
            for model in (self.base, *experts)
        )
        return SameTensor(base=base, twins=tuple(zip(map(str, experts), twins, strict=True)))

    def _of_donors(self, job: Job, dtype: str | None) -> dict[str, Task]:
        return {owner: self.gathering.one(job, donor, dtype) for owner, donor in self.owners.items()}

    def kept_out(self, job: Job) -> None:
        """Note the owners' biases where the text's is not merged: a matrix and its bias belong together."""
        is_bias = job.info.role is Role.BIASES and self._is_routed(job.info)
        if is_bias and job.held.keys() >= set(self.owners.values()):
            self._biases[job.name] = self._of_donors(job, None)

    @property
    def told(self) -> str:
        """In which form it is kept."""
        return " and ".join(["whole"] * bool(self._own) + ["as factors"] * bool(self._factored))

    def _is_routed(self, info: TensorInfo) -> bool:
        """Whether a tensor is of a linear layer that sees the tokens in order; norms and vectors are shared."""
        if info.role not in (Role.LANGUAGE_MODEL, Role.BIASES):
            return False
        path = info.name.rpartition(".")[0]
        inside = path.removeprefix(self.stack).split(".")[1:]
        if path in self.linear and path.startswith(self.stack) and not any(part.isdigit() for part in inside):
            return True
        if len(info.shape) > 1 and info.dtype.is_floating_point:
            raise MergeError(
                f"composition: damc tells tokens apart in linear layers that see all of them in order, and {info.name} "
                "belongs to none: mixtures of experts, convolutions and the like cannot be decoupled. Leave it out."
            )
        return False

    def _adapters_of_base(self) -> frozenset[ModelReference]:
        """All experts, if what each changes of the base's language model is an adapter's factors.

        One matrix is compared here, if values are at hand; the merge compares all of them.
        """
        experts = [model for model in self.inputs.checkpoints if model != self.base]
        own = is_own_method(self.method) or self.method == "task_arithmetic"
        if self.base is None or not own or not all(model.lora for model in experts):
            return frozenset()
        adapted = {
            name: _rank(model, theirs)
            for model in experts
            for name, theirs in self.inputs.names[model].items()
            if SOURCES[model].adapts(theirs) and self._is_language(name)
        }
        if not adapted or None in adapted.values():
            return frozenset()
        sample = next(iter(adapted))
        if any(SOURCES[model].checkpoint.is_headers_only for model in (self.base, *experts)):
            return frozenset(experts)  # taken for adapters of one model, as the names of their bases say
        first, *others = (read_tensor(m, self.inputs.names[m][sample]) for m in (self.base, *experts))
        return frozenset(experts if all(equal_values(first, other) for other in others) else ())

    def _is_language(self, name: str) -> bool:
        linear = name.rpartition(".")[0] in self.linear
        return linear and self.inputs.base_checkpoint.tensors[name].role in LANGUAGE_ROLES

    def _makes_factors(self, merge: Mapping[str, Any]) -> bool:
        return self.method == "task_arithmetic" or method_named(self.method).keeps_factors(merge["parameters"])

    # ------------------------------------------------------------------------------------------------------- layout

    def applied(self, outputs: Iterable[Output], scale: float) -> list[Output]:
        """An omni model's outputs, and the owners' own; `scale` is that of the merged delta in the text's weights.

        Raises:
            MergeError: there is nothing to be kept.
        """
        paths = {name.rpartition(".")[0] for name in (*self._own, *self._factored)}
        if not paths:
            raise MergeError("composition: damc has nothing to keep: no matrix of the language model is merged.")
        laid: list[Output] = []
        layers: dict[str, dict[int, str | int]] = {}
        depth = 0
        self.kept = {}
        for output in outputs:
            path, _, kind = output.name.rpartition(".")
            index, _, inside = path.removeprefix(self.stack).partition(".")
            if path.startswith(self.stack):
                depth = max(depth, int(index) + 1)
            if path not in paths:
                laid.append(output)
                continue
            factored = self._factored.get(f"{path}.weight")
            layers.setdefault(inside, {})[int(index)] = factored.rank if factored else FULL
            extra = list(self._of_owners(output, path, kind, factored, scale))
            laid += [output._replace(name=f"{path}.text.{kind}"), *extra]
            self.kept |= {name: like for name, _, like in extra}
        values = {inside: [forms.get(i, 0) for i in range(depth)] for inside, forms in layers.items()}
        self.forms = {inside: forms[0] if len(set(forms)) == 1 else forms for inside, forms in values.items()}
        return laid

    def _of_owners(
        self, output: Output, path: str, kind: str, factored: _Factored | None, scale: float
    ) -> Iterator[Output]:
        if factored is None:
            own = self._own.get(output.name) or self._biases.get(output.name, {})
            for owner in self.owners:
                yield output._replace(name=f"{path}.media.{owner}.{kind}", task=own.get(owner, output.task))
        elif kind == "weight":
            merged, experts, owners, rank, (rows, columns) = factored
            factors = SharedFactors(merged=merged, experts=experts, owners=owners, scale=scale)
            yield Output(
                f"{path}.shared.{kind}",
                PickTensor(group=factors, key="shared"),
                replace(output.like, shape=(rank, columns)),
            )
            for owner, _ in owners:
                task = PickTensor(group=factors, key=f"media.{owner}")
                yield Output(f"{path}.media.{owner}.{kind}", task, replace(output.like, shape=(rows, rank)))


def _rank(model: ModelReference, tensor: str) -> int | None:
    """As of `Adaptation`; 0 for a model without an adapter."""
    found = SOURCES[model].adaptation
    return found.rank(tensor) if found else 0
