"""Files without which an output could not be loaded, taken from inputs that have them, if these agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.side_files.code import CONFIGS_WITH_CODE, imported, modules_named
from mergekit_mm.checkpoints.side_files.model_files import ModelFiles, is_of_tokenizer
from mergekit_mm.checkpoints.side_files.processors import (
    PROCESSOR_CONFIG,
    PROCESSOR_FILES,
    has_processor,
    part_settings,
    processor_key,
    processor_parts,
    settings_key,
)
from mergekit_mm.checkpoints.side_files.tokens import TokenTables

# model type -> files without which `from_pretrained` fails
_INSISTED_ON = {"qwen2_5_omni": ("spk_dict.pt",)}


@dataclass(eq=False)
class Completion:
    """The files of an output, completed from inputs of its architecture."""

    source: str  # the model whose files the output gets, for messages
    base: ModelFiles
    inputs: Sequence[ModelFiles]  # the inputs of the output's architecture, the base first
    is_native: bool  # whether transformers itself can build the model of the output's config
    is_multimodal: bool
    copies: dict[str, Path]  # path below the output's directory -> file that is copied there
    notes: list[str] = field(default_factory=list)
    tokenizer_owner: ModelFiles | None = None  # the input whose tokenizer is taken

    def complete(self, with_tokenizer: bool, tables: TokenTables) -> None:
        """Add the missing files to `copies`, and to `notes` which were added and which no input has."""
        if with_tokenizer and not self.output().has_tokenizer:
            self._take_tokenizer(tables)
        if self.is_multimodal:
            self._take_processor()
        for name in _INSISTED_ON.get(self.base.model_type, ()):
            if name not in self.copies:
                self._take_files(name, (name,), "from_pretrained of this architecture fails without it")
        self._take_code()

    def output(self) -> ModelFiles:
        """The files of the output as planned so far."""
        return ModelFiles(self.source, self.base.model_type, self.base.config, dict(self.copies))

    def _agreed(
        self, what: str, key: Callable[[ModelFiles], str | None]
    ) -> tuple[ModelFiles | None, Sequence[ModelFiles]]:
        """All inputs that have something, and the first of them if they all have the same.

        key: equal for inputs that have the same; None for an input that has nothing.

        Returns:
            The first input, or None if the inputs differ or none has it; and all inputs that have it.
        """
        keys = {model.name: found for model in self.inputs if (found := key(model)) is not None}
        having = [model for model in self.inputs if model.name in keys]
        if len(set(keys.values())) > 1:
            self.notes.append(
                f"{self.source} has no {what}, and those of {some(keys)} differ, so that the output will have none. "
                f"`parameters: {{processor_source: {having[0].name}}}` takes the files of that model."
            )
            return None, having
        return (having[0] if having else None), having

    # -- tokenizer ----------------------------------------------------------------------------------------------------

    def _take_tokenizer(self, tables: TokenTables) -> None:
        owner, having = self._agreed("tokenizer", lambda model: _tokenizer_key(model, tables))
        if owner is not None:
            self.copies |= {name: path for name, path in owner.files.items() if is_of_tokenizer(name)}
            self.tokenizer_owner = owner
            self.notes.append(f"{self.source} has no tokenizer; that of {owner.name} was taken.")
        elif not having:
            self.notes.append(
                f"{self.source} has no tokenizer, nor has any other input of its architecture, so the output will "
                "have none; the parameter processor_source names another model to copy tokenizer and processor from."
            )

    # -- processor ----------------------------------------------------------------------------------------------------

    def _take_processor(self) -> None:
        parts = processor_parts(self.base.model_type)
        if not has_processor(self.output()):
            self._take_files("processor", PROCESSOR_FILES, "the output will have none", processor_key)
            return
        for part in parts:
            if part_settings(self.output(), part) is None:
                self._take_part(part)
        if parts and PROCESSOR_CONFIG not in self.copies:
            self._take_processor_config(parts)

    def _take_part(self, part: str) -> None:
        words = part.replace("_", " ")
        owner, having = self._agreed(f"settings of its {words}", lambda model: _part_key(model, part))
        if owner is not None:
            found = part_settings(owner, part)
            assert found is not None
            self.copies[found[0]] = owner.files[found[0]]
            self.notes.append(f"{self.source} has no settings of its {words}; {found[0]} of {owner.name} was taken.")
        elif not having:
            self.notes.append(
                f"No input has the settings of the {words} (preprocessor_config.json or processor_config.json) that a "
                f"processor of {self.base.model_type} needs: the output loads as a model, but AutoProcessor will fail. "
                "The parameter processor_source names a model to copy them from."
            )

    def _take_processor_config(self, parts: Sequence[str]) -> None:
        """Take the file of settings that older processors have beside their parts. Newer files hold the parts too."""
        plain = [
            m for m in self.inputs if (held := m.json(PROCESSOR_CONFIG)) and not {*parts, "audio_processor"} & {*held}
        ]
        keys = {settings_key(model.json(PROCESSOR_CONFIG)) for model in plain}
        if len(keys) == 1:
            self.copies[PROCESSOR_CONFIG] = plain[0].files[PROCESSOR_CONFIG]
            self.notes.append(f"{self.source} has no {PROCESSOR_CONFIG}; that of {plain[0].name} was taken.")

    def _take_files(
        self, what: str, names: Sequence[str], without: str, key: Callable[[ModelFiles], str | None] | None = None
    ) -> None:
        """Take these files from an input that has any of them. `key` as in `_agreed`; by default the files' bytes."""
        owner, having = self._agreed(what, key or (lambda model: _files_key(model, names)))
        if owner is not None:
            taken = [name for name in names if name in owner.files]
            self.copies |= {name: owner.files[name] for name in taken}
            held = "that" if taken == [what] else some(taken)
            self.notes.append(f"{self.source} has no {what}; {held} of {owner.name} was taken.")
        elif not having:
            self.notes.append(
                f"No input has a {what}: {without}. The parameter processor_source names a model that has."
            )

    # -- code ---------------------------------------------------------------------------------------------------------

    def _take_code(self) -> None:
        """Take the modules that the output's configs name, and the modules that these import."""
        absent: dict[str, str] = {}  # file of code -> the config or module that names it
        wanted = dict(self._modules())
        done: set[str] = set()
        while open_names := [name for name in wanted if name not in done]:
            for name in open_names:
                done.add(name)
                package = f"{name.removesuffix('.py')}/__init__.py"
                there = next((found for found in (name, package) if found in self.copies), None)
                if there is None:
                    absent[name] = wanted[name]
                    there = self._taken(name)
                if there is not None:
                    wanted |= dict.fromkeys(imported(there, self.copies[there]), there)
        taken: dict[str, list[str]] = {}  # names of models -> files
        lost = [name for name in absent if name not in self.copies]
        for name in absent:
            if name in self.copies:
                owner = next(model.name for model in self.inputs if model.files.get(name) == self.copies[name])
                taken.setdefault(owner, []).append(name)
        for owner, names in taken.items():
            self.notes.append(
                f"{self.source} lacks code that {some({absent[n] for n in names})} names; {some(names)} of {owner} "
                "was taken."
            )
        if lost:
            self._tell_lost(lost, absent)

    def _modules(self) -> Iterator[tuple[str, str]]:
        """(file of code, config that names it). For code of other repositories there is a note instead."""
        output = self.output()
        configs: list[tuple[str, Mapping[str, object]]] = [("config.json", output.config)]
        configs += [(name, output.json(name)) for name in CONFIGS_WITH_CODE if name in output.files]
        for config, held in configs:
            files, repositories = modules_named(held)
            for repository in repositories if config != "config.json" or not self.is_native else ():
                self.notes.append(f"{config} names code of {repository}, which is fetched when the output is loaded.")
            yield from ((file, config) for file in files)

    def _taken(self, name: str) -> str | None:
        """Take a file of code from the base, whose config it belongs to, or else from inputs that agree."""
        having = [m for m in (self.base,) if name in m.files] or [m for m in self.inputs if name in m.files]
        if len({_files_key(model, (name,)) for model in having}) != 1:
            return None
        self.copies[name] = having[0].files[name]
        return name

    def _tell_lost(self, lost: Sequence[str], named_by: Mapping[str, str]) -> None:
        disputed = [name for name in lost if any(name in model.files for model in self.inputs)]
        nowhere = [name for name in lost if name not in disputed]
        if disputed:
            having = [model.name for model in self.inputs if disputed[0] in model.files]
            self.notes.append(
                f"{self.source} lacks {some(disputed)}, code that {named_by[disputed[0]]} names, and {some(having)} "
                f"have different ones: none is taken. `parameters: {{processor_source: {having[0]}}}` takes its files."
            )
        if nowhere:
            effect = (
                "transformers has the model itself, and fails only with trust_remote_code=True"
                if self.is_native
                else "the output cannot be loaded until it is put there"
            )
            self.notes.append(
                f"No input has {some(nowhere)}, code that {some({named_by[name] for name in nowhere})} names: {effect}."
            )


def _tokenizer_key(model: ModelFiles, tables: TokenTables) -> str | None:
    if not model.has_tokenizer:
        return None
    table = tables.of(model)
    return str(id(table)) if table else _files_key(model, sorted(filter(is_of_tokenizer, model.files)))


def _part_key(model: ModelFiles, part: str) -> str | None:
    found = part_settings(model, part)
    return settings_key(found[1]) if found else None


def _files_key(model: ModelFiles, names: Sequence[str]) -> str | None:
    """A hash of the bytes of these files, as far as a model has them; None if it has none of them."""
    present = [name for name in names if name in model.files]
    if not present:
        return None
    digest = hashlib.sha256()
    for name in present:
        digest.update(f"{name}\n".encode() + model.files[name].read_bytes())
    return digest.hexdigest()
