"""The tensors of an input matched with those of the base."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from mergekit_mm.checkpoints.checkpoint import CROSS_ATTENTION, Checkpoint, TensorInfo
from mergekit_mm.checkpoints.listing import indented, some
from mergekit_mm.checkpoints.mismatch import explain
from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role
from mergekit_mm.checkpoints.submodels import common_part, part_of, parts_beyond
from mergekit_mm.checkpoints.transformers_private import ignored_if_unexpected
from mergekit_mm.checkpoints.values import same_values

# Heads that trainers put on a model: of reinforcement learning, reward models and classifiers. They stand beside the
# model, not inside it, and the model itself is used without them.
TRAINING_HEAD = re.compile(r"(v_head|value_head|reward_head|rm_head|score|classifier)\.")
OF_TRAINING = "a head of training, which the model itself has no place for"


@dataclass
class Match:
    """The tensors of one input, matched with those of the base.

    Tensors that do not fit are collected first. Whether they are a problem depends on the merge, which may not ask for
    them: see `judge`.
    """

    base: Checkpoint
    other: Checkpoint
    keeps_vocabulary: bool
    composing: bool = False  # whether an omni model is made, in which towers have a place of their own
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)  # tensors of the base that the input lacks
    differing: dict[str, str] = field(default_factory=dict)  # tensor of the base -> its shapes in both
    computing: list[str] = field(default_factory=list)  # hyperparameters in which the language models differ
    beyond: list[str] = field(default_factory=list)  # tensors of the input that the base has no place for
    untied: list[str] = field(default_factory=list)  # tensors that the base ties to others and the input does not
    unused: dict[str, list[str]] = field(default_factory=dict)  # why -> tensors of the input that are left out

    def names(self) -> dict[str, str]:
        """Name in the base -> name in the other, of all tensors that are matched."""
        if self.other is self.base:
            return {name: name for name in self.base.tensors}
        if (paths := common_part(self.base, self.other)) is not None:
            return self._of_part(*paths)
        if self.other.model_type == self.base.model_type:
            ours = self._without_parts_of_its_own(self.base, self.other, "the base's are kept")
            theirs = self._without_parts_of_its_own(self.other, self.base, "they are not used")
            return self._of_equal_shape(self._by_name(ours, theirs))
        return self.of_language_models()

    def _of_part(self, ours: str, theirs: str) -> dict[str, str]:
        """The match of a model with the module of the other model that it is. ours, theirs: paths of the module."""
        inner = Match(part_of(self.base, ours), part_of(self.other, theirs), self.keeps_vocabulary)
        found = inner._of_equal_shape(inner._by_name(list(inner.base.tensors), list(inner.other.tensors)))
        start, own = (f"{path}." if path else "" for path in (ours, theirs))
        self.lacking += [start + name for name in inner.lacking]
        self.differing |= {start + name: shapes for name, shapes in inner.differing.items()}
        self.beyond += [own + name for name in inner.beyond]
        self.untied += [own + name for name in inner.untied]
        self.unused |= {why: [own + name for name in names] for why, names in inner.unused.items()}
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
        return {start + name: own + other for name, other in found.items()}

    def _without_parts_of_its_own(self, one: Checkpoint, other: Checkpoint, fate: str) -> list[str]:
        """The tensors of one model without those of the modules for output that the other lacks by its config."""
        beyond = parts_beyond(one, other)
        if beyond:
            self.notes.append(f"By its config, {other.name} has no {', '.join(beyond)}, as {one.name} has; {fate}.")
        return [name for name in one.tensors if not name.startswith(tuple(f"{path}." for path in beyond))]

    def of_language_models(self) -> dict[str, str]:
        """Name in the base -> name in the other, of the language models alone, whatever surrounds them."""
        return self._of_equal_shape(self._by_backbone())

    def of_towers(self) -> dict[str, str]:
        """Name in the base -> name in the other, of all but the language models. Both are of one architecture."""
        return self._of_equal_shape(self._by_name(tower_names(self.base), tower_names(self.other)))

    def judge(self, asks: Callable[[str], bool], leaves_out: Callable[[TensorInfo], str | None]) -> None:
        """Sort the tensors that do not fit into `problems` and `notes`.

        Args:
            asks: whether the merge asks the input for the tensor of this name in the base.
            leaves_out: why a tensor of the input without a place in the base is not used; None if no reason is known.
        """
        absent = [name for name in self.lacking if asks(name)]
        present = self.other.tensors.keys() - self.other.unknown
        explanation = explain(self.other.model_type, absent, self.other.unknown, present).strip()
        self._problem("lacks {} tensors that {base} has", absent, explanation or self._advice(absent))
        if spared := [name for name in self.lacking if name not in absent]:
            self.notes.append(f"{self.other.name} lacks {some(spared)}; the base's are kept.")
        wrong = [name for name in self.differing if asks(name)]
        shapes = [f"{name}: {self.differing[name]}" for name in wrong]
        self._problem("differs from {base} in the shape of {} tensors", shapes, self._advice(wrong))
        if spared := [name for name in self.differing if name not in wrong]:
            self.notes.append(f"{self.other.name} has {some(spared)} in another shape; the base's are kept.")
        if self.computing and any(asks(name) for name in self.base.backbone.values()):
            self.problems += self.computing
        left: dict[str, list[str]] = {"beyond": [], "untied": []}
        for kind, names in (("beyond", self.beyond), ("untied", self.untied)):
            for name in names:
                if why := leaves_out(self.other.tensors[name]):
                    self.unused.setdefault(why, []).append(name)
                else:
                    left[kind].append(name)
        stems = ", ".join(_stems([*left["beyond"], *left["untied"]]))
        way_out = f"To leave them out, name them: `parameters: {{ignore: [{stems}]}}`."
        what = "has {} tensors of its own that {base} ties to others (tie_word_embeddings)"
        self._problem(what, left["untied"], way_out)
        self._problem("holds {} tensors that nothing would consume", left["beyond"], way_out)

    @property
    def left_over(self) -> list[str]:
        """All tensors of the input that match none of the base, whether they are a problem or not."""
        return [*self.beyond, *self.untied, *(name for names in self.unused.values() for name in names)]

    def _by_name(self, ours: list[str], theirs: list[str]) -> dict[str, str]:
        found = {name: own for name in ours if (own := self.other.present(name))}
        meta_model = self.base.meta_model
        absent = [name for name in ours if name not in found]
        spared = {
            n for n in absent if n in self.base.unknown or (meta_model is not None and meta_model.may_be_absent(n))
        }
        if spared:
            self.notes.append(f"{self.other.name} lacks {some(spared)}; the base's are kept.")
        self.lacking += [name for name in absent if name not in spared]
        used = set(found.values())
        ignored = _ignored_on_load(self.other)
        for name in theirs:
            if name in used:
                continue
            if (tied := self.base.present(name)) is not None:
                copies = tied in found and same_values(self.other, name, found[tied])
                if copies:
                    self._leave_out(f"equal to {found[tied]}, to which {self.base.name} ties it", name)
                else:
                    self.untied.append(name)
            elif any(re.search(pattern, name) for pattern in ignored):
                self._leave_out("transformers ignores it when it loads the model", name)
            elif TRAINING_HEAD.match(name) and name not in self._of_other_model:
                self._leave_out(OF_TRAINING, name)
            else:
                self.beyond.append(name)
        return found

    def _leave_out(self, why: str, name: str) -> None:
        self.unused.setdefault(why, []).append(name)

    @cached_property
    def _of_other_model(self) -> Container[str]:
        """Names of the tensors of the other's own model; empty for remote code."""
        return self.other.meta_model.tensors if self.other.meta_model else ()

    def _by_backbone(self) -> dict[str, str]:
        """Match language models of different architectures: a text-only LLM and a multimodal one around its twin."""
        base, other = self.base.backbone, self.other.backbone
        heads = {n for n in (*base, *other) if self._is_vocabulary(base.get(n), other.get(n))}
        extra = {n for n in base.keys() ^ other.keys() if n.startswith(CROSS_ATTENTION)}
        found = {base[n]: other[n] for n in base if n in other}
        for n in heads & base.keys() - other.keys():
            if n == "lm_head.weight" and self.other.ties_head:
                found[base[n]] = other["embed_tokens.weight"]  # a tied head need not be on disk
        self.lacking += [base[n] for n in base if n not in heads | extra | other.keys()]
        self.beyond += [other[n] for n in other if n not in heads | extra | base.keys()]
        unused = [n for n, info in self.other.tensors.items() if info.role not in LANGUAGE_ROLES]
        unused += [n for n in self.other.unknown if n not in unused]
        unused += [other[n] for n in heads & other.keys() - base.keys()]
        for one, fate in ((self.base, "come from the multimodal inputs"), (self.other, "are not used")):
            if layers := sorted({int(n.split(".")[1]) for n in extra & one.backbone.keys()}):
                self.notes.append(
                    f"Layers {', '.join(map(str, layers))} of {one.name} attend to media alone: they {fate}, and its "
                    "others are matched in their order."
                )
        if unused and not self.composing:
            self.unused["only the language model is merged"] = unused
        if not self.composing:
            kept = [n for n, info in self.base.tensors.items() if info.role not in LANGUAGE_ROLES]
            self.notes.append(
                f"{self.other.name} ({self.other.model_type}) is merged into the language model"
                + (f"; {len(kept)} tensors of towers and projectors come from the multimodal inputs." if kept else ".")
            )
        return found

    def _is_vocabulary(self, base_name: str | None, other_name: str | None) -> bool:
        infos = [c.tensors[n] for c, n in ((self.base, base_name), (self.other, other_name)) if n is not None]
        return any(info.vocabulary_axis is not None for info in infos)

    def _of_equal_shape(self, found: dict[str, str]) -> dict[str, str]:
        """The matches without tensors of other shapes. For a vocabulary of another length, the base's stays."""
        fitting: dict[str, str] = {}
        for name, own in found.items():
            ours, theirs = self.base.tensors[name], self.other.tensors[own]
            rows_only = ours.vocabulary_axis is not None and ours.shape[1:] == theirs.shape[1:]
            if ours.shape == theirs.shape or (rows_only and not self.keeps_vocabulary):
                fitting[name] = own
            elif rows_only:
                mergeable = all(len(each.vocabulary_sizes) == 1 for each in (self.base, self.other))
                self.notes.append(
                    f"{name} stays at the base: {self.base.name} has {ours.shape[0]} rows, {self.other.name} "
                    f"{theirs.shape[0]}."
                    + (" A `tokenizer:` section in the config merges vocabularies." if mergeable else "")
                )
            else:
                self.differing[name] = f"{theirs.shape}, not {ours.shape}"
        return fitting

    def _problem(self, what: str, names: list[str], advice: str) -> None:
        if names:
            finding = f"  {self.other.name} " + what.format(len(names), base=self.base.name) + ":"
            self.problems.append(finding + indented(names, "    ", most=12) + (f"\n    {advice}" if advice else ""))

    def _advice(self, names: list[str]) -> str:
        """How the config can keep the base's tensors of these names; empty if that is impossible."""
        roles = {self.base.tensors[name].role for name in names} - {Role.LANGUAGE_MODEL}
        if self.composing or not roles:
            return ""
        return f"The base's are kept by `parameters: {{{', '.join(f'{r.value}: base' for r in sorted(roles))}}}`."


def tower_names(checkpoint: Checkpoint) -> list[str]:
    """Names in memory of all tensors outside of the language model that the model has a place for."""
    infos = checkpoint.tensors.values()
    return [t.name for t in infos if t.role not in LANGUAGE_ROLES and t.name not in checkpoint.unknown]


def _ignored_on_load(checkpoint: Checkpoint) -> Iterable[str]:
    # buffers that older versions of transformers saved; newer versions leave them out of every model
    dropped = [r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]
    return [*dropped, *(ignored_if_unexpected(checkpoint.meta_model.model) if checkpoint.meta_model else ())]


def _stems(names: list[str]) -> list[str]:
    """The shortest beginnings that name all of these tensors: `v_head`, `model.vision_tower`."""
    depth = 2 if all(name.startswith("model.") for name in names) else 1
    return sorted({".".join(name.split(".")[:depth]) for name in names})
