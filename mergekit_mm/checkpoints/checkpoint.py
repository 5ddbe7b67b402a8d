"""One checkpoint: its tensors by their names in memory, with shape, dtype and role, and their place on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mergekit_mm.checkpoints.disk import DiskTensor, read_config, read_headers
from mergekit_mm.checkpoints.meta_model import MetaModel, meta_model_of
from mergekit_mm.checkpoints.mismatch import explain
from mergekit_mm.checkpoints.quantization import require_plain, without_quantization
from mergekit_mm.checkpoints.remote import is_headers_only
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, TOWERS, Role, classify, classify_names, is_indexed_by_tokens
from mergekit_mm.checkpoints.unwrapping import unwrap
from mergekit_mm.checkpoints.weight_files import holds_adapter
from mergekit_mm.checkpoints.weight_names import Group, group_names
from mergekit_mm.errors import MergeError

CROSS_ATTENTION = "cross_attention."  # beginning of the neutral names of layers that a text-only LLM lacks


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the model in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: Role
    is_convolution: bool = False
    vocabulary_axis: int | None = None  # the axis that token ids index, which may differ in length between models


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one checkpoint directory. Only headers have been read."""

    name: str  # the user's name for it, for messages
    directory: Path
    config: Mapping[str, Any]  # the parsed config.json, without entries about quantization
    meta_model: MetaModel | None  # None for remote code, of which only the names on disk are known
    disk: Mapping[str, DiskTensor]  # name on disk, without a training wrapper's prefix -> its header
    groups: tuple[Group, ...]
    unknown: frozenset[str]  # names on disk that the model has no place for
    tensors: Mapping[str, TensorInfo]  # name in memory (on disk, if the model does not know the tensor) -> tensor
    files: tuple[str, ...]  # the files that hold the tensors
    notes: tuple[str, ...] = ()  # steps taken while the files were read that may surprise the user

    @cached_property
    def is_headers_only(self) -> bool:
        """Whether the tensors have no values here, as `check` and `inspect` fetch none from the hub."""
        return is_headers_only(self.directory)

    @property
    def has_own_adapter(self) -> bool:
        """Whether there is an adapter that the model's own class loads and applies to one medium alone."""
        switches = self.meta_model is not None and getattr(self.meta_model.model.config, "has_lora_adapter", False)
        return bool(switches) and holds_adapter(self.directory)

    def is_folded(self, name: str) -> bool:
        """Whether a tensor, by its name in memory, has unmerged factors on disk, and is thus read in float32."""
        return any(self.disk[part].is_folded for part in self.group_of[name].disk)

    @property
    def model_type(self) -> str:
        """The architecture, as transformers names it."""
        return str(self.config.get("model_type"))

    @cached_property
    def group_of(self) -> Mapping[str, Group]:
        """The group that makes each memory tensor."""
        return {name: group for group in self.groups for name in group.memory}

    def present(self, name: str) -> str | None:
        """The name under which this checkpoint holds a tensor: its own name, or that of a tensor it is tied to."""
        tied = self.meta_model.tied_to(name) if self.meta_model else ()
        return next((n for n in (name, *tied) if n in self.tensors), None)

    @property
    def ties_head(self) -> bool:
        """Whether the output head is tied to the embeddings, so that it need not be on disk."""
        embeddings = self.backbone.get("embed_tokens.weight")
        return self.meta_model is not None and embeddings in self.meta_model.aliases.values()

    @property
    def embeddings(self) -> str:
        """The name in memory of the table that has a row for each token.

        Raises:
            MergeError: no tensor is known as such a table.
        """
        by_token = (n for n, info in self.tensors.items() if info.role is Role.EMBEDDINGS and info.vocabulary_axis == 0)
        found = self.backbone.get("embed_tokens.weight") or next(by_token, None)
        if found is None:
            raise MergeError(f"{self.name} has no embeddings of tokens that are known, so its vocabulary must stay.")
        return found

    @cached_property
    def vocabulary_sizes(self) -> Mapping[int, str]:
        """Number of rows -> the first table of that many rows, of all tables that token ids index.

        A vocabulary can be changed where this is one number. Mllama's head has no row for its image token, and the
        per-layer embeddings of Gemma 3n none for the ids that stand for pieces of images and sounds.
        """
        tables = [info for info in self.tensors.values() if info.vocabulary_axis is not None]
        return {info.shape[0]: info.name for info in reversed(tables)}

    @property
    def is_multimodal(self) -> bool:
        return any(info.role in TOWERS or info.role is Role.PROJECTOR for info in self.tensors.values())

    @cached_property
    def backbone(self) -> Mapping[str, str]:
        """The tensors of the language model: neutral name -> name in memory.

        Neutral names do not depend on the model around the language model, so that they are the same in a text-only
        LLM: `layers.0.mlp.up_proj.weight`, `embed_tokens.weight`, `lm_head.weight`. A text-only LLM lacks layers that
        attend to media alone. These keep their number, and the others are counted without them:
        `cross_attention.3.mlp.up_proj.weight`.
        """
        return neutral_names({n: info.role for n, info in self.tensors.items() if n not in self.unknown})


def neutral_names(roles: Mapping[str, Role]) -> dict[str, str]:
    """`Checkpoint.backbone`, from the roles of tensors by their names in memory."""
    names = [n for n, role in roles.items() if role in LANGUAGE_ROLES]
    stack = layer_stack(names)
    parent = stack.rpartition(".")[0] + "." if "." in stack else ""
    result = {}
    for name in names:
        if roles[name] is Role.LM_HEAD:
            neutral = "lm_head." + name.rpartition(".")[2]
        else:
            neutral = name.removeprefix(parent)
        result[neutral] = name
    return _numbered_as_in_twin(result)


def _numbered_as_in_twin(backbone: Mapping[str, str]) -> dict[str, str]:
    attending = {
        kind: {int(found[1]) for name in backbone if (found := re.match(rf"layers\.(\d+)\.{kind}_att", name))}
        for kind in ("self", "cross")
    }
    only_cross = attending["cross"] - attending["self"]

    def renumbered(layer: re.Match[str]) -> str:
        index = int(layer[1])
        if index in only_cross:
            return f"{CROSS_ATTENTION}{index}"
        return f"layers.{index - sum(before < index for before in only_cross)}"

    return {re.sub(r"^layers\.(\d+)", renumbered, neutral): name for neutral, name in backbone.items()}


def layer_stack(names: list[str]) -> str:
    """The path of the module list that holds most of these tensors, `model.language_model.layers`; else empty."""
    counts: dict[str, int] = {}
    for name in names:
        if match := re.search(r"\.\d+\.", name):
            counts[name[: match.start()]] = counts.get(name[: match.start()], 0) + 1
    return max(counts, key=lambda path: (counts[path], path), default="")


def open_checkpoint(name: str, directory: Path, whole: bool = True) -> Checkpoint:
    """Read the headers of a checkpoint directory and find the place of each tensor in the model of its config.

    Args:
        name: the checkpoint as the user wrote it, for messages.
        whole: whether the directory must hold all tensors that its model needs.

    Raises:
        MergeError: the directory is no checkpoint, is quantized or incomplete, holds tensors of other shapes than its
            config describes, or holds one tensor under two names.
    """
    config = read_config(directory)
    if not config.get("model_type") and "auto_map" not in config:
        raise MergeError(
            f"{directory / 'config.json'} has no `model_type`, so nobody can tell what model it describes; an export "
            "has lost it. Put the config.json of the model that this one was made from there."
        )
    checkpoint = assemble_checkpoint(name, directory, config, read_headers(directory))
    if whole:
        require_complete(checkpoint)
    _require_untied(checkpoint)
    return checkpoint


def assemble_checkpoint(
    name: str, directory: Path, config: Mapping[str, Any], stored: Mapping[str, DiskTensor]
) -> Checkpoint:
    """The checkpoint of a config and tensors, which need not be in `directory` yet.

    Raises:
        MergeError: see `open_checkpoint`; missing tensors are not looked for.
    """
    meta_model = meta_model_of(without_quantization(config))
    known = meta_model.tensors if meta_model else {}
    config, of_quantization = require_plain(name, directory, config, stored, known)
    disk, config, of_wrappers = unwrap(name, directory, config, stored, meta_model)
    if meta_model is None:
        groups = [Group((tensor,), (tensor,)) for tensor in disk]
        unknown: list[str] = []
    else:
        groups, unknown = group_names(meta_model, disk)
        groups += [Group((tensor,), (tensor,)) for tensor in unknown]
    tensors = _inventory(name, meta_model, disk, groups)
    tensors = _without_foreign_vocabularies(tensors, frozenset(unknown))
    return Checkpoint(
        name,
        directory,
        config,
        meta_model,
        disk,
        tuple(groups),
        frozenset(unknown),
        tensors,
        tuple(sorted({tensor.file for tensor in stored.values()})),
        (*of_quantization, *of_wrappers),
    )


def _inventory(
    name: str, meta_model: MetaModel | None, disk: Mapping[str, DiskTensor], groups: list[Group]
) -> dict[str, TensorInfo]:
    roles = classify_names(disk) | (classify(meta_model) if meta_model else {})
    found: dict[str, TensorInfo] = {}
    makers: dict[str, Group] = {}
    wrong: list[str] = []
    for group in groups:
        made = group.to_memory({n: torch.empty(disk[n].shape, dtype=disk[n].dtype, device="meta") for n in group.disk})
        for memory, tensor in made.items():
            expected = meta_model.tensors.get(memory) if meta_model else None
            if expected is not None and expected.shape != tensor.shape:
                wrong.append(f"{', '.join(group.disk[:2])}: {tuple(tensor.shape)}, not {tuple(expected.shape)}")
            if (other := makers.setdefault(memory, group)) is not group:
                raise MergeError(
                    f"{name} holds {other.disk[0]} and {group.disk[0]}, which are both {memory} once the model is "
                    "loaded: remove what is out of date."
                )
            convolution = meta_model is not None and memory in meta_model.convolutions
            axis = 0 if is_indexed_by_tokens(memory, roles[memory]) else None
            found[memory] = TensorInfo(memory, tuple(tensor.shape), tensor.dtype, roles[memory], convolution, axis)
    if wrong:
        raise MergeError(
            f"{name} holds {len(wrong)} tensors of another shape than its own config.json asks for:\n  "
            + "\n  ".join(wrong[:10])
        )
    if meta_model is None:
        return found
    order = {memory: i for i, memory in enumerate(meta_model.tensors)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _without_foreign_vocabularies(tensors: dict[str, TensorInfo], unknown: frozenset[str]) -> dict[str, TensorInfo]:
    """The tensors, with token ids as the index of an unknown one only if it has as many rows as the model's own tables.

    What an unknown tensor is for is guessed from its name. `mtp.embed_tokens.weight` is a copy of the embeddings; an
    `lm_head.weight` of 64 rows is another model's, and the rows of a new vocabulary mean nothing in it.
    """
    own = {info.shape[0] for name, info in tensors.items() if info.vocabulary_axis is not None and name not in unknown}
    foreign = (n for n in unknown if tensors[n].vocabulary_axis is not None and tensors[n].shape[0] not in own)
    return tensors | {name: replace(tensors[name], vocabulary_axis=None) for name in foreign}


def require_complete(checkpoint: Checkpoint) -> None:
    """Raise MergeError where tensors of the checkpoint's own model are missing."""
    meta_model = checkpoint.meta_model
    if meta_model is None:
        return
    absent = [n for n in meta_model.tensors if checkpoint.present(n) is None and not meta_model.may_be_absent(n)]
    if absent:
        present = checkpoint.tensors.keys() - checkpoint.unknown
        raise MergeError(
            f"{checkpoint.name} lacks {len(absent)} tensors of its own model ({checkpoint.model_type}), which "
            "transformers would fill with random values."
            + explain(checkpoint.model_type, absent, checkpoint.unknown, present)
            + "".join(f"\n  {name}" for name in absent[:10])
        )


def _require_untied(checkpoint: Checkpoint) -> None:
    """Refuse factors of a tensor that the model ties to another, as the other would change too."""
    for name in checkpoint.tensors:
        tied = checkpoint.meta_model.tied_to(name) if checkpoint.meta_model else []
        if tied and checkpoint.is_folded(name):
            raise MergeError(
                f"{checkpoint.name} holds LoRA factors of {name}, which the model ties to {', '.join(tied)}: that "
                "would change with it. Merge them with PEFT and untie the two."
            )
