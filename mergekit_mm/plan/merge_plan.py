"""A merge as data: what is done with every tensor of the output, under which names, with which files beside them."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.inputs import Inputs, OmniInputs, as_written
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.side_files import SideFiles
from mergekit_mm.plan.summary import lines_by_role
from mergekit_mm.plan.tensor_plan import Copy, Keep, TensorPlan
from mergekit_mm.plan.usage import unused_tensors

# The dtypes that a merge can have.
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do. It holds no tensor, and nothing in it is done yet.

    Two plans are equal if they would make the same output from the same config; `digest` tells them apart for good.
    """

    config: MergeConfiguration = field(hash=False)  # the user's, with models that hold an adapter written as `a+b`
    tensors: tuple[TensorPlan, ...]
    outputs: tuple[OutputTensor, ...]
    layers: tuple[int, ...] | None  # for each layer of the language model, the one it was; None if none is moved
    moves_rows: bool  # whether tensors that token ids index get other rows than their inputs have
    notes: tuple[str, ...]  # what is done on purpose but may surprise
    inputs: Inputs = field(compare=False, repr=False)
    side_files: SideFiles | None = field(default=None, hash=False, repr=False)

    def __getitem__(self, name: str) -> TensorPlan:
        """The plan of one tensor, by its name in memory or on disk.

        Raises:
            MergeError: the output has no such tensor; the names that come closest are told.
        """
        if name in self._by_name:
            return self._by_name[name]
        on_disk = {output.name: output.tensor for output in self.outputs}
        if name in on_disk:
            return self._by_name[on_disk[name]]
        close = difflib.get_close_matches(name, [*self._by_name, *on_disk], n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise MergeError(f"The output has no tensor {name!r}.{hint}")

    def __iter__(self) -> Iterator[TensorPlan]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @cached_property
    def _by_name(self) -> Mapping[str, TensorPlan]:
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of what `check --json` writes: equal for equal plans, in every process."""
        from mergekit_mm.plan.as_json import as_json

        text = json.dumps(as_json(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    # ------------------------------------------------------------------------------------------------------ the output

    @property
    def layout(self) -> dict[str, DiskTensor]:
        """Name of every output tensor on disk -> the input's tensor whose shape and dtype it has."""
        return {output.name: output.like for output in self.outputs}

    @property
    def output_bytes(self) -> int:
        """Size of the output's tensors, in the dtype asked for."""
        return sum(self.written_bytes(output.like) for output in self.outputs)

    def written_dtype(self, like: DiskTensor) -> torch.dtype:
        """The dtype in which an output tensor is written that has the shape and dtype of an input's."""
        wanted = self.config.out_dtype or self.config.dtype
        return DTYPES[wanted] if wanted and like.dtype.is_floating_point else like.dtype

    def written_bytes(self, like: DiskTensor) -> int:
        return like.nbytes // like.dtype.itemsize * self.written_dtype(like).itemsize

    # ------------------------------------------------------------------------------------------------------ for people

    def __str__(self) -> str:
        lines = [self.report(), f"  output: {self.size}"]
        return "\n".join([*lines, self.not_used()])

    @property
    def size(self) -> str:
        """How much is written: `147 GB in 1354 tensors, 12 MB in 9 files beside them`."""
        told = f"{self.output_bytes / 1e9:.3g} GB in {len(self.outputs)} tensors"
        if self.side_files is None:
            return told
        return f"{told}, {size_of(self.side_files.nbytes)} in {len(self.side_files.copies)} files beside them"

    def report(self) -> str:
        """What is done with the tensors of each role, and what may surprise."""
        lines = [*self._headline(), *(f"  {line}" for line in lines_by_role(self.merged_tensors, self._kept_words))]
        return "\n".join([*lines, *(f"  note: {note}" for note in dict.fromkeys(self.notes))])

    def not_used(self, copied: Collection[str] | None = None) -> str:
        """What of the inputs is neither merged nor copied, one thing a line; or that there is no such thing.

        copied: the files that the output gets beside its weights, by their paths below its directory; by default those
        of `side_files`.
        """
        if copied is None:
            copied = self.side_files.copies if self.side_files else ()
        lines = dict.fromkeys([*self._unused_tensors(), *self.inputs.unused_beside(copied)])
        if not lines:
            return "Every tensor of every input is used."
        return "\n".join(["Not used:", *(f"  {line}" for line in lines)])

    def with_notes(self, notes: Sequence[str]) -> MergePlan:
        return replace(self, notes=(*self.notes, *notes))

    @property
    def merged_tensors(self) -> list[TensorPlan]:
        """The planned tensors without second copies of tied ones."""
        return [tensor for tensor in self.tensors if not isinstance(tensor.action, Copy)]

    def _unused_tensors(self) -> Iterator[str]:
        return unused_tensors(self.inputs, self.tensors, self.moves_rows)

    def _headline(self) -> list[str]:
        base = self.inputs.base
        others = [as_written(model) for model in self.inputs.checkpoints if model != base]
        first = f"{self.config.merge_method} of {len(self.inputs.checkpoints)} models in the layout of {base}"
        return [first, *(f"  with {name}" for name in others)]

    def _kept_words(self, _role: Role) -> str:
        return "kept as in"


@dataclass(frozen=True)
class OmniPlan(MergePlan):
    """The plan of an omni model, whose towers come to the language model from other models."""

    inputs: OmniInputs = field(compare=False, repr=False, kw_only=True)
    routed: Mapping[str, int | str | Sequence[int | str]] = field(default_factory=dict, hash=False, kw_only=True)
    # ^ `routed` of the omni config: linear layer -> how its tokens are told apart (DAMC)

    def _headline(self) -> list[str]:
        models, omni = self.inputs.checkpoints, self.inputs.composition
        others = [as_written(model) for model in models if model != self.inputs.base]
        lines = [
            f"omni model: {self.config.merge_method} of the language models of {len(models)} models; host "
            f"{self.inputs.base}",
            *(f"  with {name}" for name in others),
            *(f"  {modality} by {donor}" for modality, donor in omni.modalities.items()),
        ]
        kept = [output for output in self.outputs if output.piece in (Piece.OWNER, Piece.BASIS, Piece.FACTOR)]
        if kept:
            forms = ["whole"] * any(o.piece is Piece.OWNER for o in kept)
            forms += ["as factors"] * any(o.piece is Piece.BASIS for o in kept)
            size = sum(self.written_bytes(output.like) for output in kept)
            lines.append(
                "  composition damc: tokens of each modality go through matrices of their own donor's, kept "
                f"{' and '.join(forms)}: {len(kept)} tensors, {size / 1e9:.3g} GB more"
            )
        return lines

    def _unused_tensors(self) -> Iterator[str]:
        yield from super()._unused_tensors()
        led: dict[tuple[str, ModelReference], list[ModelReference]] = {}
        for tensor in self.tensors:
            kept = tensor.shared_action
            if not isinstance(kept, Keep) or kept.model == tensor.base:
                continue
            if others := [model for model in tensor.inputs if model != kept.model]:
                led[tensor.info.role.value, kept.model] = others
        for (name, lead), others in led.items():
            yield (
                f"{name} is that of {lead}; {', '.join(map(str, others))} has one of the same kind, which is not "
                f"used. `parameters: {name}: average` would merge them, the name of a donor takes another."
            )

    def _kept_words(self, role: Role) -> str:
        return "kept as in" if role in LANGUAGE_ROLES else "grafted from"
