"""A merge as data: the plan of every tensor, the names that are written, and the files beside the weights."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.inputs import Inputs, OmniInputs, name_in_config
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.parts import in_parts
from mergekit_mm.plan.side_files import SideFiles
from mergekit_mm.plan.summary import lines_by_role
from mergekit_mm.plan.tensor_plan import Copy, Keep, TensorPlan
from mergekit_mm.plan.usage import unused_tensors

# The dtypes in which a merge can compute and be written, by their names in a config.
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class MergePlan:
    """The plan of one merge. It holds no tensor, and nothing in it is done yet.

    Two plans are equal if they would make the same output from the same config. `digest` of `as_json` is
    an equality that also holds between processes.
    """

    config: MergeConfiguration = field(hash=False)  # the user's; a model that holds an adapter is written as `a+b`
    tensors: tuple[TensorPlan, ...]
    outputs: tuple[OutputTensor, ...]  # the tensors on disk
    layers: tuple[int, ...] | None  # for each layer of the language model, its index in the base; None if none is moved
    moves_rows: bool  # whether tensors that token ids index get other rows than their inputs have
    notes: tuple[str, ...]  # on steps that are taken on purpose but may surprise
    inputs: Inputs = field(compare=False, repr=False)
    side_files: SideFiles | None = field(default=None, hash=False, repr=False)

    def __getitem__(self, name: str) -> TensorPlan:
        """The plan of one tensor, by its name in memory or on disk.

        Raises:
            MergeError: the output has no such tensor. The message has the closest names.
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

    # ------------------------------------------------------------------------------------------------------ the output

    @cached_property
    def made(self) -> tuple[OutputTensor, ...]:
        """The outputs as they are made: of a stack of experts that is made in parts, a part in place of the whole."""
        return tuple(self.outputs if isinstance(self, OmniPlan) else in_parts(self))

    @property
    def output_bytes(self) -> int:
        """Size of the output's tensors in bytes, in the dtype that the config asks for."""
        return sum(self.written_bytes(output.like) for output in self.outputs)

    def written_dtype(self, like: DiskTensor) -> torch.dtype:
        """The dtype in which an output tensor is written; `like` is that of its `OutputTensor`."""
        asked_for = self.config.out_dtype or self.config.dtype
        return DTYPES[asked_for] if asked_for and like.dtype.is_floating_point else like.dtype

    def written_bytes(self, like: DiskTensor) -> int:
        """The size in bytes of an output tensor; `like` is that of its `OutputTensor`."""
        return like.nbytes // like.dtype.itemsize * self.written_dtype(like).itemsize

    # ------------------------------------------------------------------------------------------------------ for people

    def __str__(self) -> str:
        return self.in_words()

    def in_words(self, takes: Sequence[str] = ()) -> str:
        """The report, the size of the output, and what is not used.

        takes: lines on what the merge will take, which stand behind the size; see `execution/estimate.py`.
        """
        return "\n".join([self.report(), f"  output: {self.size}", *takes, self.not_used()])

    @property
    def size(self) -> str:
        """The size of the output in words: `147 GB in 1354 tensors, 12 MB in 9 files beside them`."""
        tensors = f"{self.output_bytes / 1e9:.3g} GB in {len(self.outputs)} tensors"
        if self.side_files is None:
            return tensors
        return f"{tensors}, {size_of(self.side_files.nbytes)} in {len(self.side_files.copies)} files beside them"

    def report(self) -> str:
        """The inputs, a line on the tensors of each role, and the notes."""
        lines = [*self._headline(), *(f"  {line}" for line in lines_by_role(self.merged_tensors, self._words_for_kept))]
        return "\n".join([*lines, *(f"  note: {note}" for note in dict.fromkeys(self.notes))])

    def not_used(self, copied: Collection[str] | None = None) -> str:
        """A line on each part of the inputs that is neither merged nor copied; or one line if there is no such part.

        copied: the files that the output gets beside its weights, by their paths below its directory; by default those
        of `side_files`.
        """
        if copied is None:
            copied = self.side_files.copies if self.side_files else ()
        lines = dict.fromkeys([*self._unused_tensors(), *self.inputs.unused_beside(copied)])
        if not lines:
            return "Every tensor of every input is used."
        return "\n".join(["Not used:", *(f"  {line}" for line in lines)])

    @property
    def merged_tensors(self) -> list[TensorPlan]:
        """The planned tensors without second copies of tied ones."""
        return [tensor for tensor in self.tensors if not isinstance(tensor.action, Copy)]

    def _unused_tensors(self) -> Iterator[str]:
        return unused_tensors(self.inputs, self.tensors, self.moves_rows)

    def _headline(self) -> list[str]:
        base = self.inputs.base
        others = [name_in_config(model) for model in self.inputs.checkpoints if model != base]
        first = f"{self.config.merge_method} of {len(self.inputs.checkpoints)} models in the layout of {base}"
        return [first, *(f"  with {name}" for name in others)]

    def _words_for_kept(self, _role: Role) -> str:
        return "kept as in"


@dataclass(frozen=True)
class OmniPlan(MergePlan):
    """The plan of an omni model: a merged language model, with towers that are taken from its donors."""

    inputs: OmniInputs = field(compare=False, repr=False, kw_only=True)
    # `routed` of the omni config (DAMC): linear layer -> `full`, or the rank of its factors, for all layers or for each
    routed: Mapping[str, int | str | Sequence[int | str]] = field(default_factory=dict, hash=False, kw_only=True)

    def _headline(self) -> list[str]:
        models, omni = self.inputs.checkpoints, self.inputs.composition
        others = [name_in_config(model) for model in models if model != self.inputs.base]
        lines = [
            f"omni model: {self.config.merge_method} of the language models of {len(models)} models; host "
            f"{self.inputs.base}",
            *(f"  with {name}" for name in others),
            *(f"  {modality} by {donor}" for modality, donor in omni.modalities.items()),
        ]
        pieces = [output for output in self.outputs if output.piece in (Piece.OWNER, Piece.BASIS, Piece.FACTOR)]
        if pieces:
            forms = ["whole"] * any(output.piece is Piece.OWNER for output in pieces)
            forms += ["as factors"] * any(output.piece is Piece.BASIS for output in pieces)
            size = sum(self.written_bytes(output.like) for output in pieces)
            lines.append(
                "  composition damc: tokens of each modality go through matrices of their own donor's, kept "
                f"{' and '.join(forms)}: {len(pieces)} tensors, {size / 1e9:.3g} GB more"
            )
        return lines

    def _unused_tensors(self) -> Iterator[str]:
        yield from super()._unused_tensors()
        others_of: dict[
            tuple[str, ModelReference], list[ModelReference]
        ] = {}  # (role, kept model) -> models with it too
        for tensor in self.tensors:
            action = tensor.shared_action
            if not isinstance(action, Keep) or action.model == tensor.base:
                continue
            if others := [model for model in tensor.inputs if model != action.model]:
                others_of[tensor.info.role.value, action.model] = others
        for (role, kept_model), others in others_of.items():
            yield (
                f"{role} is that of {kept_model}; {', '.join(map(str, others))} has one of the same kind, which is not "
                f"used. `parameters: {role}: average` would merge them, the name of a donor takes another."
            )

    def _words_for_kept(self, role: Role) -> str:
        return "kept as in" if role in LANGUAGE_ROLES else "grafted from"
