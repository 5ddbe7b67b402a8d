"""Tensors of two checkpoints held against each other: which of the other stands for which of the base."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from mergekit_mm.architecture.checkpoint import CROSS_ATTENTION, Checkpoint
from mergekit_mm.architecture.listing import indented, some
from mergekit_mm.architecture.roles import LANGUAGE_ROLES
from mergekit_mm.architecture.submodels import common_part, part_of, parts_beyond


@dataclass
class Match:
    """How one input's tensors stand for the base's."""

    base: Checkpoint
    other: Checkpoint
    keeps_vocabulary: bool
    composing: bool = False  # an omni model: towers go elsewhere, so there is nothing to note about them
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def names(self) -> dict[str, str]:
        """Name in the base -> name in the other, of all tensors."""
        if self.other is self.base:
            return {name: name for name in self.base.tensors}
        if (paths := common_part(self.base, self.other)) is not None:
            return self._of_part(*paths)
        if self.other.kind == self.base.kind:
            ours = self._without_parts_of_its_own(self.base, self.other, "the base's are kept")
            theirs = self._without_parts_of_its_own(self.other, self.base, "they are not used")
            return self._of_equal_shape(self._by_name(ours, theirs))
        return self.of_language_models()

    def _of_part(self, ours: str, theirs: str) -> dict[str, str]:
        """Where one model is a module of the other: the module's tensors matched with the whole of the former."""
        inner = Match(part_of(self.base, ours), part_of(self.other, theirs), self.keeps_vocabulary)
        found = inner._of_equal_shape(inner._by_name(list(inner.base.tensors), list(inner.other.tensors)))
        self.problems += inner.problems
        for whole, part, path, fate in (
            (self.base, self.other, ours, "come from the inputs that have them"),
            (self.other, self.base, theirs, "are not used"),
        ):
            if rest := [name for name in whole.tensors if path and not name.startswith(f"{path}.")]:
                self.notes.append(
                    f"{part.name} is what {whole.name} has as `{path}`; {len(rest)} tensors outside of that {fate}: "
                    f"{some(rest)}."
                )
        self.notes += inner.notes
        start, own = (f"{path}." if path else "" for path in (ours, theirs))
        return {start + name: own + other for name, other in found.items()}

    def _without_parts_of_its_own(self, one: Checkpoint, other: Checkpoint, fate: str) -> list[str]:
        """The tensors of one model, without those of whole modules that the other's config leaves out."""
        beyond = parts_beyond(one, other)
        if beyond:
            self.notes.append(f"By its config, {other.name} has no {', '.join(beyond)}, as {one.name} has; {fate}.")
        return [name for name in one.tensors if not name.startswith(tuple(f"{path}." for path in beyond))]

    def of_language_models(self) -> dict[str, str]:
        """The same of the language models alone, whatever surrounds them."""
        return self._of_equal_shape(self._by_backbone())

    def of_towers(self) -> dict[str, str]:
        """The same of all but the language models, of two models of one architecture."""
        return self._of_equal_shape(self._by_name(tower_names(self.base), tower_names(self.other)))

    def _by_name(self, ours: list[str], theirs: list[str]) -> dict[str, str]:
        found = {name: own for name in ours if (own := self.other.present(name))}
        skeleton = self.base.skeleton
        absent = [name for name in ours if name not in found]
        spared = {n for n in absent if n in self.base.unknown or (skeleton is not None and skeleton.may_be_absent(n))}
        if spared:
            self.notes.append(f"{self.other.name} lacks {some(spared)}; the base's are kept.")
        self._problem("lacks {} tensors that {base} has", [name for name in absent if name not in spared])
        used = set(found.values())
        unused = [name for name in theirs if name not in used]
        left = [name for name in unused if self.base.present(name) is None]
        ignored = _ignored_on_load(self.other)
        ties = self.other.skeleton.aliases if self.other.skeleton else {}
        untied = [name for name in unused if name not in left and name not in {*ties, *ties.values()}]
        self._problem("has {} tensors of its own that {base} ties to others (tie_word_embeddings)", untied)
        dropped = {name for name in left if any(re.search(pattern, name) for pattern in ignored)}
        if dropped:
            self.notes.append(f"{self.other.name} holds {some(dropped)} that transformers ignores; they are left out.")
        self._problem("holds {} tensors that nothing would consume", [name for name in left if name not in dropped])
        return found

    def _by_backbone(self) -> dict[str, str]:
        """Match language models of different architectures: a text-only LLM and a multimodal one around its twin."""
        base, other = self.base.backbone, self.other.backbone
        heads = {n for n in (*base, *other) if self._is_vocabulary(base.get(n), other.get(n))}
        extra = {n for n in base.keys() ^ other.keys() if n.startswith(CROSS_ATTENTION)}
        found = {base[n]: other[n] for n in base if n in other}
        for n in heads & base.keys() - other.keys():
            if n == "lm_head.weight" and self.other.ties_head:
                found[base[n]] = other["embed_tokens.weight"]  # not on disk, but there
        self._problem(
            "has no counterpart for {} tensors of the language model of {base}",
            [base[n] for n in base if n not in heads | extra | other.keys()],
        )
        self._problem(
            "has {} tensors in its language model that nothing would consume",
            [other[n] for n in other if n not in heads | extra | base.keys()],
        )
        unused = [n for n, info in self.other.tensors.items() if info.role not in LANGUAGE_ROLES]
        unused += [other[n] for n in heads & other.keys() - base.keys()]
        for one, fate in ((self.base, "come from the multimodal inputs"), (self.other, "are not used")):
            if layers := sorted({int(n.split(".")[1]) for n in extra & one.backbone.keys()}):
                self.notes.append(
                    f"Layers {', '.join(map(str, layers))} of {one.name} attend to media alone: they {fate}, and its "
                    "others are matched in their order."
                )
        if unused and not self.composing:
            self.notes.append(f"Only the language model of {self.other.name} is merged; not used: {some(unused)}.")
        if not self.problems and not self.composing:
            kept = [n for n, info in self.base.tensors.items() if info.role not in LANGUAGE_ROLES]
            self.notes.append(
                f"{self.other.name} ({self.other.kind}) is merged into the language model"
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
                mergeable = self.base.heads_all_tokens and self.other.heads_all_tokens
                self.notes.append(
                    f"{name} stays at the base: {self.base.name} has {ours.shape[0]} rows, {self.other.name} "
                    f"{theirs.shape[0]}."
                    + (" A `tokenizer:` section in the config merges vocabularies." if mergeable else "")
                )
            else:
                wrong.append(f"{name}: {theirs.shape}, not {ours.shape}")
        self._problem("differs from {base} in the shape of {} tensors", wrong)
        return fitting

    def _problem(self, what: str, names: list[str]) -> None:
        if names:
            told = f"  {self.other.name} " + what.format(len(names), base=self.base.name) + ":"
            self.problems.append(told + indented(names, "    ", most=12))


def tower_names(checkpoint: Checkpoint) -> list[str]:
    """Names in memory of everything but the language model, as far as the model has a place for it."""
    infos = checkpoint.tensors.values()
    return [t.name for t in infos if t.role not in LANGUAGE_ROLES and t.name not in checkpoint.unknown]


def _ignored_on_load(checkpoint: Checkpoint) -> Iterable[str]:
    # buffers that older versions of transformers saved, and that newer ones drop for every model
    dropped = [r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]
    own = checkpoint.skeleton.model._keys_to_ignore_on_load_unexpected if checkpoint.skeleton else None
    return [*dropped, *(own or ())]
