"""DAMC (Chen et al., ACL 2024): tokens of each modality keep going through the language model of their own donor.

Tokens of text go through the merged weights, of any method; with task_arithmetic these are the paper's adaptive
adjustment, the base and a weighted sum of deltas. Tokens of a modality go through its donor's own matrices. The paper
trains two adapters per donor, one for text and one for its modality; here both are the one delta that a donor has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from torch import nn

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role
from mergekit_mm.checkpoints.values import equal_values, read_tensor
from mergekit_mm.errors import MergeError
from mergekit_mm.methods.declarations import makes_factors_of_factors, merges_deltas
from mergekit_mm.omni.routing import FULL
from mergekit_mm.plan.inputs import OmniInputs
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge, Route, TensorPlan


@dataclass(frozen=True, eq=False)
class Router:
    """Puts routes into the plans of a language model's linear layers.

    Each owner of a modality keeps its donor's whole matrix; or factors, if all donors are adapters of the base's
    language model and the method makes factors of factors.
    """

    inputs: OmniInputs
    config: MergeConfiguration
    stack: str  # the path of the language model's layers, with a dot at its end

    @cached_property
    def owners(self) -> tuple[tuple[str, ModelReference], ...]:
        """`host` or the name of a guest -> the donor that owns a modality."""
        omni = self.inputs.composition
        return tuple({omni.owner(modality): donor for modality, donor in omni.modalities.items()}.items())

    def routed(self, tensors: Iterable[TensorPlan]) -> list[TensorPlan]:
        """The plans of an omni model's tensors, with routes where tokens are told apart.

        Raises:
            MergeError: a tensor in which tokens cannot be told apart, a donor without a part in the merge, or a merge
                in which there is nothing to keep.
        """
        routed = [self._with_route(tensor) for tensor in tensors]
        routes = {t.name: t.action for t in routed if isinstance(t.action, Route)}
        if not any(route.rank != 0 for route in routes.values()):
            raise MergeError("composition: damc has nothing to keep: no matrix of the language model is merged.")
        return [self._bias_like_matrix(tensor, routes) for tensor in routed]

    def _bias_like_matrix(self, tensor: TensorPlan, routes: Mapping[str, Route]) -> TensorPlan:
        """The plan of a tensor. A bias has a route only where its matrix is kept whole: the two belong together."""
        if not isinstance(tensor.action, Route) or _is_matrix(tensor):
            return tensor
        matrix = routes.get(f"{_path(tensor)}.weight")
        keeps_route = isinstance(tensor.action.shared, Merge) if matrix is None else matrix.rank is None
        return tensor if keeps_route else replace(tensor, action=tensor.action.shared)

    def _with_route(self, tensor: TensorPlan) -> TensorPlan:
        """The plan of a tensor, with a route if it is a linear layer's bias, or is merged and part of such a layer."""
        if isinstance(tensor.action, Keep | Average):
            is_bias = tensor.info.role is Role.BIASES and self._is_routable(tensor.info)
            if not is_bias or not tensor.inputs.keys() >= {donor for _, donor in self.owners}:
                return tensor
            return replace(tensor, action=Route(tensor.action, self.owners, None))
        assert isinstance(tensor.action, Merge)
        if not self._is_routable(tensor.info):
            return tensor
        if absent := [str(donor) for _, donor in self.owners if donor not in tensor.inputs]:
            raise MergeError(f"composition: damc needs {', '.join(absent)}, which takes no part in {tensor.name}.")
        return replace(tensor, action=Route(tensor.action, self.owners, self._rank(tensor)))

    def _rank(self, tensor: TensorPlan) -> int | None:
        """The rank of the factors that owners keep; None where whole matrices are smaller, or there are no factors."""
        experts = [model for model in tensor.inputs if model != self.config.base_model]
        if self.config.base_model not in tensor.inputs or not self._adapters.issuperset(experts):
            return None
        rank = sum(self.inputs.adapter_rank(model, tensor.inputs[model]) or 0 for model in experts)
        if rank == 0:
            return 0
        (rows, columns), owners = tensor.info.shape, len(self.owners)
        is_smaller = rank * (columns + owners * rows) < owners * rows * columns
        return rank if is_smaller and makes_factors_of_factors(self.config.merge_method, tensor.parameters) else None

    def _is_routable(self, info: TensorInfo) -> bool:
        """Whether a tensor belongs to a linear layer that sees all tokens in order; norms and vectors are shared.

        Raises:
            MergeError: it is a matrix of the language model, but of no such layer.
        """
        if info.role not in (Role.LANGUAGE_MODEL, Role.BIASES):
            return False
        path = info.name.rpartition(".")[0]
        after_index = path.removeprefix(self.stack).split(".")[1:]
        is_in_list = any(part.isdigit() for part in after_index)  # as an expert of a mixture is, which sees some tokens
        if path in self._linear and path.startswith(self.stack) and not is_in_list:
            return True
        if len(info.shape) > 1 and info.dtype.is_floating_point:
            raise MergeError(
                f"composition: damc tells tokens apart in linear layers that see all of them in order, and {info.name} "
                "belongs to none: mixtures of experts, convolutions and the like cannot be decoupled. Leave it out."
            )
        return False

    @cached_property
    def _linear(self) -> frozenset[str]:
        """Paths of the host's linear layers."""
        meta_model = self.inputs.base_checkpoint.meta_model
        assert meta_model is not None
        return frozenset(n for n, module in meta_model.model.named_modules() if isinstance(module, nn.Linear))

    @cached_property
    def _adapters(self) -> frozenset[ModelReference]:
        """All experts, if each differs from the base's language model by an adapter's factors alone; else none.

        That the models under the adapters are the base is checked on one matrix here, where its values are on this
        machine; the merge checks all matrices.
        """
        inputs, base = self.inputs, self.config.base_model
        experts = [model for model in inputs.checkpoints if model != base]
        if base is None or base.lora or not all(model.lora for model in experts):
            return frozenset()
        if not merges_deltas(self.config.merge_method):
            return frozenset()
        ranks = {
            name: inputs.adapter_rank(model, own)
            for model in experts
            for name, own in inputs.names[model].items()
            if inputs.adapts(model, own) and self._is_language(name)
        }
        if not ranks or None in ranks.values():
            return frozenset()
        sample = next(iter(ranks))
        checkpoints = [inputs.checkpoints[model] for model in (base, *experts)]
        if any(checkpoint.is_headers_only for checkpoint in checkpoints):
            return frozenset(experts)  # The names of their bases say that they are adapters of one model.
        names = [inputs.names[model][sample] for model in (base, *experts)]
        first, *others = (read_tensor(c, name) for c, name in zip(checkpoints, names, strict=True))
        return frozenset(experts if all(equal_values(first, other) for other in others) else ())

    def _is_language(self, name: str) -> bool:
        linear = name.rpartition(".")[0] in self._linear
        return linear and self.inputs.base_checkpoint.tensors[name].role in LANGUAGE_ROLES


def routed_outputs(
    outputs: Iterable[OutputTensor], tensors: Mapping[str, TensorPlan], stack: str
) -> tuple[list[OutputTensor], dict[str, Any]]:
    """An omni model's tensors on disk with the owners' own tensors among them, and `routed` of the omni config.

    tensors: name -> plan. stack: as for `Router`. `routed` has for each linear layer, by its path in a layer of the
    stack, `full`, the rank of its factors or 0 for none: one value if all layers agree, else a list of one for each.
    """
    matrices_last = sorted(tensors.values(), key=_is_matrix)  # so that the route of a matrix replaces its bias's
    routes = {_path(t): t.action for t in matrices_last if isinstance(t.action, Route)}
    routed: list[OutputTensor] = []
    forms: dict[str, dict[int, str | int]] = {}  # path in a layer -> index of the layer -> `full` or rank
    depth = 0
    for output in outputs:
        path, _, kind = output.name.rpartition(".")
        index, _, path_in_layer = path.removeprefix(stack).partition(".")
        if path.startswith(stack):
            depth = max(depth, int(index) + 1)
        route = routes.get(path)
        if route is None or route.rank == 0:
            routed.append(output)
            continue
        forms.setdefault(path_in_layer, {})[int(index)] = FULL if route.rank is None else route.rank
        routed += [replace(output, name=f"{path}.text.{kind}"), *_of_owners(output, path, kind, route)]
    by_layer = {path: [of_path.get(i, 0) for i in range(depth)] for path, of_path in forms.items()}
    return routed, {path: values[0] if len(set(values)) == 1 else values for path, values in by_layer.items()}


def _of_owners(output: OutputTensor, path: str, kind: str, route: Route) -> Iterator[OutputTensor]:
    """The owners' tensors beside one shared tensor; a bias beside factors is shared by all."""
    if route.rank is None:
        for owner, _ in route.owners:
            yield replace(output, name=f"{path}.media.{owner}.{kind}", piece=Piece.OWNER, owner=owner)
    elif kind == "weight":
        rows, columns = output.like.shape
        basis = replace(output.like, shape=(route.rank, columns))
        yield replace(output, name=f"{path}.shared.{kind}", like=basis, piece=Piece.BASIS)
        for owner, _ in route.owners:
            factor = replace(output.like, shape=(rows, route.rank))
            yield replace(output, name=f"{path}.media.{owner}.{kind}", like=factor, piece=Piece.FACTOR, owner=owner)


def _path(tensor: TensorPlan) -> str:
    return tensor.name.rpartition(".")[0]


def _is_matrix(tensor: TensorPlan) -> bool:
    return tensor.name.endswith(".weight")
