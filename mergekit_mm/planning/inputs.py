"""The inputs of one merge, matched to each other tensor by tensor, before any of them is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.architecture.checkpoint import Checkpoint, open_checkpoint
from mergekit_mm.architecture.disk import CheckpointError
from mergekit_mm.architecture.roles import LANGUAGE_ROLES
from mergekit_mm.planning.adapters import bind_adapter
from mergekit_mm.planning.composition import Composition, compose, differences, is_composed
from mergekit_mm.planning.reading import Adaptation

# everything a checkpoint needs to be merged and to be used afterwards; weights in other formats are left out
_NOT_DOWNLOADED = [
    "*.gguf",
    "*.onnx",
    "*.msgpack",
    "*.h5",
    "*.pth",
    "original/*",
    "onnx/*",
    "consolidated*",
    "optimizer*",
]

_SHOWN = 12  # names listed per problem


@dataclass(frozen=True, eq=False)
class Inputs:
    """All checkpoints of a merge. Names are those that the base has in memory."""

    base: ModelReference  # its layout, config and side files are the output's
    checkpoints: Mapping[ModelReference, Checkpoint]  # of a model with an adapter, that of the model alone
    adaptations: Mapping[ModelReference, Adaptation]
    names: Mapping[ModelReference, Mapping[str, str]]  # model -> name in the base -> the model's own name in memory
    notes: list[str]  # what is done on purpose but may surprise
    composition: Composition | None = None  # of an omni model; `base` is then its host

    @property
    def directories(self) -> list[Path]:
        """Where the inputs are, adapters among them."""
        adapters = [found.adapter.directory for found in self.adaptations.values()]
        return [*(checkpoint.directory for checkpoint in self.checkpoints.values()), *adapters]

    @property
    def base_checkpoint(self) -> Checkpoint:
        return self.checkpoints[self.base]


def models_in_order(config: MergeConfiguration) -> list[ModelReference]:
    """Every model that a config names, base first, then as listed, each once (mergekit's own list has no order)."""
    listed: list[ModelReference] = [config.base_model] if config.base_model else []
    listed += [entry.model for entry in config.models or ()]
    slices = list(config.slices or ())
    for module in (config.modules or {}).values():
        listed += [entry.model for entry in module.models or ()]
        slices += module.slices or ()
    listed += [source.model for part in slices for source in part.sources]
    return list(dict.fromkeys(listed))


def locate(model: ModelPath, options: MergeOptions) -> Path:
    """The local directory of a model or adapter, downloaded with all its side files if it is on the hub.

    Raises:
        CheckpointError: it cannot be found.
    """
    path = Path(model.path).expanduser()
    if path.is_dir():
        return path
    try:
        files = huggingface_hub.list_repo_files(model.path, revision=model.revision)
        ignore = [*_NOT_DOWNLOADED, *(["*.bin"] if any(f.endswith(".safetensors") for f in files) else [])]
        return Path(
            huggingface_hub.snapshot_download(
                model.path,
                revision=model.revision,
                cache_dir=options.transformers_cache,
                ignore_patterns=ignore,
            )
        )
    except Exception as error:
        raise CheckpointError(
            f"{model} is neither a local directory nor a model that can be fetched from the hub: {error}"
        ) from error


def open_inputs(config: MergeConfiguration, options: MergeOptions) -> Inputs:
    """Open every input and match its tensors with the base's.

    Raises:
        CheckpointError: listing everything in all inputs that does not fit: tensors that an input lacks, tensors that
            nothing would consume, shapes that differ.
    """
    models = models_in_order(config)
    checkpoints, adaptations, problems = _open_all(models, options)
    composition = compose(config, checkpoints) if not problems and is_composed(checkpoints) else None
    layout = composition.host if composition else models[0]
    base = checkpoints.get(layout)
    if config.base_model and base is not None and not composition:
        problems += _on_other_models(checkpoints, base)
    keeps_vocabulary = config.tokenizer is None and config.tokenizer_source is None and composition is None
    names: dict[ModelReference, Mapping[str, str]] = {}
    notes: list[str] = []
    for model, checkpoint in checkpoints.items():
        if base is None:
            break
        match = _Match(base, checkpoint, keeps_vocabulary, composition is not None)
        names[model] = match.names()
        problems += match.problems
        if composition:
            forbidding, known = differences(checkpoints.get(config.base_model, base), checkpoint)
            problems += [f"  The language models differ: {told}." for told in forbidding]
            notes += [f"The language models differ: {told}. The output has the latter." for told in known]
        notes += match.notes
    if composition:
        notes += [
            f"Only the language model of {c.name} is merged: none of its towers and projectors serves a modality here."
            for model, c in checkpoints.items()
            if c.is_multimodal and not composition.takes_towers_of(model, checkpoints)
        ]
    if problems or base is None:
        raise CheckpointError("These inputs cannot be merged:\n" + "\n".join(problems))
    if base.unknown:
        notes.append(
            f"{base.name} holds {_some(base.unknown)} that transformers' model has no place for; "
            "they are kept under their names on disk."
        )
    return Inputs(layout, checkpoints, adaptations, names, notes, composition)


def _open_all(
    models: list[ModelReference], options: MergeOptions
) -> tuple[dict[ModelReference, Checkpoint], dict[ModelReference, Adaptation], list[str]]:
    """All checkpoints and adapters that can be opened, and what is wrong with the others."""
    opened: dict[ModelReference, Checkpoint] = {}
    adaptations: dict[ModelReference, Adaptation] = {}
    alone: dict[ModelPath, Checkpoint | CheckpointError] = {}  # the model of many adapters is opened once
    problems: list[str] = []
    for model in models:
        if model.model not in alone:
            alone[model.model] = _open(model.model, options)
        checkpoint = alone[model.model]
        if isinstance(checkpoint, CheckpointError):
            problems.append(f"  {checkpoint}")
            continue
        opened[model] = checkpoint
        try:
            if model.lora:
                adaptations[model] = bind_adapter(model, locate(model.lora, options), checkpoint)
        except CheckpointError as error:
            problems.append(f"  {error}")
    return opened, adaptations, list(dict.fromkeys(problems))


def _on_other_models(checkpoints: Mapping[ModelReference, Checkpoint], base: Checkpoint) -> list[str]:
    """Adapters that are put on another model of the base's architecture than the base itself."""
    return [
        f"  {model.lora} is put on {model.model}, but base_model is {base.name}; an adapter is a delta over its own "
        "base: name the same model in both places."
        for model, checkpoint in checkpoints.items()
        if model.lora
        and checkpoint.directory.resolve() != base.directory.resolve()
        and checkpoint.config.get("model_type") == base.config.get("model_type")
    ]


def _open(model: ModelPath, options: MergeOptions) -> Checkpoint | CheckpointError:
    try:
        return open_checkpoint(str(model), locate(model, options))
    except CheckpointError as error:
        return error


@dataclass
class _Match:
    """How one input's tensors stand for the base's."""

    base: Checkpoint
    other: Checkpoint
    keeps_vocabulary: bool
    composing: bool  # towers are grafted, so only language models have to match
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def names(self) -> dict[str, str]:
        if self.other is self.base:
            return {name: name for name in self.base.tensors}
        if self.other.config.get("model_type") == self.base.config.get("model_type"):
            found = self._by_name()
        else:
            found = self._by_backbone()
        return self._of_equal_shape(found)

    def _by_name(self) -> dict[str, str]:
        found = {name: own for name in self.base.tensors if (own := self.other.present(name))}
        skeleton = self.base.skeleton
        absent = [name for name in self.base.tensors if name not in found]
        spared = {n for n in absent if n in self.base.unknown or (skeleton is not None and skeleton.may_be_absent(n))}
        if spared:
            self.notes.append(f"{self.other.name} lacks {_some(spared)}; the base's are kept.")
        self._problem("lacks {} tensors that {base} has", [name for name in absent if name not in spared])
        used = set(found.values())
        left = [name for name in self.other.tensors if name not in used and self.base.present(name) is None]
        ignored = _ignored_on_load(self.other)
        dropped = {name for name in left if any(re.search(pattern, name) for pattern in ignored)}
        if dropped:
            self.notes.append(f"{self.other.name} holds {_some(dropped)} that transformers ignores; they are left out.")
        self._problem("holds {} tensors that nothing would consume", [name for name in left if name not in dropped])
        return found

    def _by_backbone(self) -> dict[str, str]:
        """Match language models of different architectures: a text-only LLM and a multimodal one around its twin."""
        base, other = self.base.backbone, self.other.backbone
        heads = {n for n in (*base, *other) if self._is_vocabulary(base.get(n), other.get(n))}
        found = {base[n]: other[n] for n in base if n in other}
        for n in heads & base.keys() - other.keys():
            if n == "lm_head.weight" and self.other.ties_head:
                found[base[n]] = other["embed_tokens.weight"]  # not on disk, but there
        self._problem(
            "has no counterpart for {} tensors of the language model of {base}",
            [base[n] for n in base if n not in heads | other.keys()],
        )
        self._problem(
            "has {} tensors in its language model that nothing would consume",
            [other[n] for n in other if n not in heads | base.keys()],
        )
        unused = [n for n, info in self.other.tensors.items() if info.role not in LANGUAGE_ROLES]
        unused += [other[n] for n in heads & other.keys() - base.keys()]
        if unused and not self.composing:
            self.notes.append(f"Only the language model of {self.other.name} is merged; not used: {_some(unused)}.")
        if not self.problems and not self.composing:
            kept = [n for n, info in self.base.tensors.items() if info.role not in LANGUAGE_ROLES]
            self.notes.append(
                f"{self.other.name} ({self.other.config.get('model_type')}) is merged into the language model"
                + (f"; {len(kept)} tensors of towers and projectors come from the multimodal inputs." if kept else ".")
            )
        return found

    def _is_vocabulary(self, base_name: str | None, other_name: str | None) -> bool:
        infos = [c.tensors[n] for c, n in ((self.base, base_name), (self.other, other_name)) if n is not None]
        return any(info.vocabulary_axis is not None for info in infos)

    def _of_equal_shape(self, found: dict[str, str]) -> dict[str, str]:
        """Drop the vocabulary tensors whose row counts differ (the base's stay); any other difference is a problem."""
        fitting: dict[str, str] = {}
        wrong: list[str] = []
        for name, own in found.items():
            ours, theirs = self.base.tensors[name], self.other.tensors[own]
            rows_only = ours.vocabulary_axis is not None and ours.shape[1:] == theirs.shape[1:]
            if ours.shape == theirs.shape or (rows_only and not self.keeps_vocabulary):
                fitting[name] = own
            elif rows_only:
                self.notes.append(
                    f"{name} stays at the base: {self.base.name} has {ours.shape[0]} rows, {self.other.name} "
                    f"{theirs.shape[0]}. A `tokenizer:` section in the config merges vocabularies."
                )
            else:
                wrong.append(f"{name}: {theirs.shape}, not {ours.shape}")
        self._problem("differs from {base} in the shape of {} tensors", wrong)
        return fitting

    def _problem(self, what: str, names: list[str]) -> None:
        if names:
            lines = [f"  {self.other.name} " + what.format(len(names), base=self.base.name) + ":"]
            lines += [f"    {name}" for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f"    ... and {len(names) - _SHOWN} more")
            self.problems.append("\n".join(lines))


def _ignored_on_load(checkpoint: Checkpoint) -> Iterable[str]:
    # buffers that older versions of transformers saved, and that newer ones drop for every model
    dropped = [r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]
    own = checkpoint.skeleton.model._keys_to_ignore_on_load_unexpected if checkpoint.skeleton else None
    return [*dropped, *(own or ())]


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
