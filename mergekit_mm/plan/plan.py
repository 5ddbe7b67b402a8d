"""A merge, planned and checked, with little read (headers, small files, samples of values) and nothing written."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import BasePolicy
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.adapters.embedded import with_embedded_adapters
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.errors import MergeError, refused_by
from mergekit_mm.plan.inputs import Inputs, as_written, models_in_order, open_inputs
from mergekit_mm.plan.keys import check_keys
from mergekit_mm.plan.modules import merge_architecture
from mergekit_mm.plan.omni.composition import CHOICE, COMPOSITION, DAMC, HOST, choices, is_decoupled
from mergekit_mm.plan.omni.model import omni_model
from mergekit_mm.plan.omni.processor import omni_processor
from mergekit_mm.plan.parameters import (
    SIDE_FILES,
    check_modules,
    check_parameters,
    require_known_method,
    unread_parameters,
)
from mergekit_mm.plan.planner import MultimodalPlanner
from mergekit_mm.plan.unchanged import unchanged
from mergekit_mm.plan.usage import unused_tensors
from mergekit_mm.tasks.reading import open_sources

LOG = logging.getLogger(__name__)

# The dtypes that a merge can have.
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a merge will do."""

    config: MergeConfiguration  # the user's config, with models that hold an adapter written as `a+b`
    inputs: Inputs
    planner: MultimodalPlanner

    @property
    def output_bytes(self) -> int:
        """Size of the output's tensors, in the dtype asked for."""
        return self._bytes(self.planner.output.values())

    def written_dtype(self, like: DiskTensor) -> torch.dtype:
        """The dtype in which a tensor of the output is written that is like one of an input."""
        wanted = self.config.out_dtype or self.config.dtype
        return _DTYPES[wanted] if wanted and like.dtype.is_floating_point else like.dtype

    def _bytes(self, tensors: Iterable[DiskTensor]) -> int:
        return sum(tensor.nbytes // tensor.dtype.itemsize * self.written_dtype(tensor).itemsize for tensor in tensors)

    def report(self) -> str:
        """What is done with the tensors of each role, and what may surprise, for people."""
        method, base = self.config.merge_method, self.inputs.base
        others = [as_written(model) for model in self.inputs.checkpoints if model != base]
        lines = [f"{method} of {len(self.inputs.checkpoints)} models in the layout of {base}"]
        lines += [f"  with {name}" for name in others]
        if (omni := self.inputs.composition) is not None:
            lines[0] = (
                f"omni model: {method} of the language models of {len(self.inputs.checkpoints)} models; host {base}"
            )
            lines += [f"  {modality} by {donor}" for modality, donor in omni.modalities.items()]
        if (decoupled := self.planner.decoupling) is not None and decoupled.kept:
            size = self._bytes(decoupled.kept.values())
            lines.append(
                f"  {COMPOSITION} {DAMC}: tokens of media go through matrices of their own donor's, "
                f"kept {decoupled.told}: {len(decoupled.kept)} tensors, {size / 1e9:.3g} GB more"
            )
        ledger = self.planner.ledger
        lines += [f"  {line}" for line in ledger.lines(method, omni is not None)]
        notes = dict.fromkeys(self.inputs.notes)
        lines += [f"  note: {note}" for note in notes]
        return "\n".join(lines)

    def not_used(self, copied: Collection[str]) -> str:
        """What of the inputs is neither merged nor copied, one thing a line; or that there is no such thing.

        copied: the files that the output gets beside its weights, by their paths below its directory.
        """
        lines = dict.fromkeys([*unused_tensors(self.inputs, self.planner), *self.inputs.unused_beside(copied)])
        if not lines:
            return "Every tensor of every input is used."
        return "\n".join(["Not used:", *(f"  {line}" for line in lines)])


@contextmanager
def plan_merge(
    config: MergeConfiguration, options: MergeOptions, sweep: bool = False, source: str | None = None
) -> Iterator[Plan]:
    """Open the inputs, match them and settle what is done with each tensor; `sweep` if deltas will be rescaled.

    The inputs stay open to the tasks of the plan until the block ends. source: the text that the config was read from,
    where there is one.

    Raises:
        MergeError: an input is damaged, or the inputs do not fit each other.
        MergeError: the config asks for something that does not exist.
    """
    if source is not None:
        check_keys(source)
    if not (config.models or config.slices or config.modules):
        raise MergeError("The merge config lists no models.")
    require_known_method(config.merge_method)
    if merge_methods.get(config.merge_method).spec.contract.base is BasePolicy.REQUIRED and not config.base_model:
        raise MergeError(
            f"merge_method {config.merge_method} needs a base model: add `base_model: <model>` to the config."
        )
    _require_dtypes(config)
    config, embedded = with_embedded_adapters(config, models_in_order(config), options, (*CHOICE.values(), HOST))
    inputs = open_inputs(config, options)
    inputs.notes[:0] = embedded
    inputs.notes.extend(unchanged(inputs, config.base_model is not None))
    inputs.notes.extend(_headers_only(inputs))
    with open_sources(inputs.checkpoints, inputs.adaptations, options.lazy_unpickle):
        yield Plan(config, inputs, _planner(config, options, inputs, sweep))


def _headers_only(inputs: Inputs) -> Iterator[str]:
    """A note on the models of the hub whose values were not fetched, and on what is left to the merge by that."""
    if read := dict.fromkeys(c.name for c in inputs.checkpoints.values() if c.is_headers_only):
        yield (
            f"Only the headers of {', '.join(read)} were read. Whether their values are those of another input, and "
            "whether tensors are equal that have to be (ties, integers), the merge will find out."
        )


def _planner(config: MergeConfiguration, options: MergeOptions, inputs: Inputs, sweep: bool) -> MultimodalPlanner:
    """The planner, once the config is seen to be one for these inputs."""
    architecture = merge_architecture(inputs.base_checkpoint, inputs.tensors)
    check_parameters(config)
    check_modules(config, list(architecture.modules), inputs.base, inputs.checkpoints)
    if unread := unread_parameters(config):
        inputs.notes.append(f"{config.merge_method} does not read the parameters {', '.join(unread)}.")
    if is_decoupled(config) and not inputs.composition:
        raise MergeError(
            f"parameter {COMPOSITION}: {DAMC} is for omni models, and these inputs are not multimodal models of "
            "different architectures."
        )
    planned = config.model_copy(deep=True)  # the planner rewrites its config
    if inputs.composition:
        _require_whole(inputs, config)
        chosen = choices(config, inputs.checkpoints)
        planned.parameters = {k: v for k, v in (config.parameters or {}).items() if k not in chosen}
    return MultimodalPlanner(planned, architecture, options, inputs, sweep)


def _require_dtypes(config: MergeConfiguration) -> None:
    for name in ("dtype", "out_dtype"):
        if (value := getattr(config, name)) not in (None, *_DTYPES):
            raise MergeError(f"{name}: {value!r} will not do; choose {' | '.join(_DTYPES)}.")


def _require_whole(inputs: Inputs, config: MergeConfiguration) -> None:
    """Refuse donors that do not compose, or whose tensors are not those of the model they would make together."""
    assert inputs.composition is not None
    if SIDE_FILES in (config.parameters or {}):
        raise MergeError(f"{SIDE_FILES}: not for an omni model: it has the processors of all its donors.")
    with refused_by("mergekit_mm.omni.configuration", about="These models do not compose: "):
        composed, expected = omni_model(inputs.composition, inputs.checkpoints, inputs.base_checkpoint.config)
    missing, extra = expected.keys() - inputs.tensors.keys(), inputs.tensors.keys() - expected.keys()
    if missing or extra:
        raise MergeError(
            f"The tensors of these donors are not those of an omni model: missing {some(missing) or 'none'}; "
            f"without a place {some(extra) or 'none'}."
        )
    for note in omni_processor(inputs.composition, inputs.checkpoints, composed)[1]:
        inputs.notes.append(note)
        LOG.warning(note)
