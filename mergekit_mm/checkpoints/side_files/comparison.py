"""Differences between the side files of the inputs and those of the output: one note per kind and group of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.remote import same_on_hub
from mergekit_mm.checkpoints.side_files.generation import GENERATION_CONFIG, generation_differences, stop_tokens
from mergekit_mm.checkpoints.side_files.model_files import ModelFiles, chat_template, is_read_as_it_is
from mergekit_mm.checkpoints.side_files.processors import setting_differences
from mergekit_mm.checkpoints.side_files.tokens import (
    TokenDifference,
    TokenTables,
    conflicts,
    other_vocabulary_files,
    special_token_differences,
    token_difference,
)

_SHOWN = 6  # differences in a message
_WHOLE = 1 << 23  # bytes of the largest files that are compared whole
_SPOTS, _SPOT = 64, 1 << 16  # samples of larger files: number of places, bytes at each place

_STOP, _SPECIAL, _VOCABULARY = "Stop tokens", "Special tokens", "Vocabulary"
_GENERATION, _TEMPLATE, _PROCESSOR = "Generation config", "Chat template", "Processor settings"
_CODE, _COPIED = "Code", "Files that are copied and not merged"
# the kinds of files that `processor_source` chooses
_CHOSEN = (_STOP, _SPECIAL, _VOCABULARY, _GENERATION, _TEMPLATE, _PROCESSOR)


class Difference(NamedTuple):
    """A difference between the files of an input and those of the output. Equal ones become one note."""

    kind: str
    description: str
    key: str = ""  # tells apart differences with the same description


class Comparison(NamedTuple):
    """The differences between all inputs and the output, as sentences."""

    notes: list[str]
    warnings: list[str]  # notes on damage that the merge does


def compare(
    output: ModelFiles,
    experts: Sequence[ModelFiles],
    owner: str,
    tables: TokenTables | None,
    chooses: bool = True,
) -> Comparison:
    """Compare the side files of the experts with those of the output.

    Args:
        experts: all inputs but the base. Of an expert of another architecture, only the tokens are compared.
        owner: the model whose files the output has.
        tables: None leaves vocabularies out, which is right where the config makes a new one.
        chooses: whether the config can choose other files by `processor_source`.
    """
    groups: dict[Difference, list[str]] = {}
    tokens: dict[str, TokenDifference] = {}
    for expert in experts:
        for difference in _differences(output, expert, tables, tokens):
            groups.setdefault(difference, []).append(expert.name)
    worded: dict[tuple[str, str], list[str]] = {}
    for difference, names in groups.items():
        worded.setdefault((difference.kind, difference.description), []).extend(names)
    notes = [_sentence(kind, description, names, owner) for (kind, description), names in worded.items()]
    agreed = {d.kind for d, names in groups.items() if len(names) == len(experts)} & {*_CHOSEN}
    if agreed and chooses:
        first = experts[0].name
        agreement = f", on which all {len(experts)} experts agree," if len(experts) > 1 else ""
        kinds = " and ".join(kind.lower() for kind in _CHOSEN if kind in agreed)
        notes.append(
            f"`parameters: {{processor_source: {first}}}` gives the output its files; {kinds}{agreement} "
            "will be theirs."
        )
    found = conflicts(tokens)
    warnings = [_conflict(found)] if found else []
    return Comparison(notes, warnings)


def _sentence(kind: str, description: str, names: Sequence[str], owner: str) -> str:
    who = some(names)
    verb = "differ from those of" if kind.endswith("s") else "differs from that of"
    return f"{kind} of {who} {verb} {owner}, which the output has{f': {description}' if description else ''}."


def _differences(
    output: ModelFiles, expert: ModelFiles, tables: TokenTables | None, tokens: dict[str, TokenDifference]
) -> Iterator[Difference]:
    """Every difference of one expert. The difference of its tokens is put into `tokens`, too."""
    alike = expert.model_type == output.model_type
    ours, theirs = stop_tokens(output), stop_tokens(expert)
    if theirs and ours and (set(theirs) - set(ours) or (ours != theirs and GENERATION_CONFIG in expert.files)):
        yield Difference(_STOP, f"eos_token_id {_ids(theirs)}, not {_ids(ours)}")
    if tables is not None:
        yield from _token_differences(output, expert, tables, alike, tokens)
    if not alike:
        return
    yield from _listed(_GENERATION, generation_differences(output, expert))
    own, template = chat_template(output), chat_template(expert)
    if own is not None and template is not None and own.strip() != template.strip():
        yield Difference(_TEMPLATE, "", template)
    yield from _listed(_PROCESSOR, setting_differences(output, expert))
    yield from _file_differences(output, expert)


def _token_differences(
    output: ModelFiles, expert: ModelFiles, tables: TokenTables, alike: bool, tokens: dict[str, TokenDifference]
) -> Iterator[Difference]:
    if alike:
        yield from _listed(_SPECIAL, special_token_differences(output, expert))
    ours, theirs = tables.of(output), tables.of(expert)
    if ours is None or theirs is None:
        if other := other_vocabulary_files(output, expert):
            yield Difference(_VOCABULARY, some(other))
        return
    found = token_difference(ours, theirs)
    if found is not None and not alike:  # a text-only LLM lacks tokens of media, and may split texts by its own code
        found = replace(found, absent=0, splitting=())
    if found is not None and (description := found.described()):
        tokens[expert.name] = found
        yield Difference(_VOCABULARY, description, repr((found.renamed, found.added)))


def _listed(kind: str, differences: Iterator[str]) -> Iterator[Difference]:
    found = list(differences)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield Difference(kind, f"{', '.join(found[:_SHOWN])}{more}", repr(found))


def _ids(found: Sequence[int]) -> str:
    return str(found[0]) if len(found) == 1 else str(list(found))


def _file_differences(output: ModelFiles, expert: ModelFiles) -> Iterator[Difference]:
    """The differences in code and in other files that are copied as they are."""
    read = [name for name in expert.files if is_read_as_it_is(name)]
    other = [name for name in read if name in output.files and not same_file(output.files[name], expert.files[name])]
    code = [name for name in other if name.endswith(".py")]
    yield from _named(_CODE, code)
    yield from _named(_COPIED, [name for name in other if name not in code])


def _named(kind: str, names: Sequence[str]) -> Iterator[Difference]:
    if names:
        yield Difference(kind, some(names), repr(names))


def same_file(ours: Path, theirs: Path) -> bool:
    """Whether two files hold the same bytes. Large files of the same size are compared in many places only."""
    if ours.samefile(theirs):
        return True
    size = ours.stat().st_size
    if size != theirs.stat().st_size:
        return False
    if (by_hash := same_on_hub(ours, theirs)) is not None:
        return by_hash
    step, length = (size, size) if size <= _WHOLE else (size // _SPOTS, _SPOT)
    with ours.open("rb") as first, theirs.open("rb") as second:
        for start in range(0, size, step or 1):
            first.seek(start)
            second.seek(start)
            if first.read(length) != second.read(length):
                return False
    return True


def _conflict(found: Sequence[tuple[int, Mapping[str, Sequence[str]]]]) -> str:
    index, tokens = found[0]
    meanings = " and ".join(f"{token!r} in {some(models)}" for token, models in tokens.items())
    more = f", and so with {len(found) - 1} more ids" if len(found) > 1 else ""
    return (
        f"One id means different tokens: {index} is {meanings}{more}. A merge makes one row of the embeddings of both; "
        "`tokenizer: {source: union}` gives each token its own."
    )
