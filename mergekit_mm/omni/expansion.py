"""What a donor's processor makes of its modality: token ids in the place of a placeholder, tensors for its tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ARGUMENT = {"image": "images", "video": "videos", "audio": "audio"}  # of transformers' processors
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")  # outputs of a processor with one value per token

Piece = tuple[list[int], dict[str, list[int]]]  # the donor's token ids of one input, and values per token by name


def run_donor(
    donor: Any, modality: str, snippet: str, items: list[list[Any]], options: dict[str, Any]
) -> tuple[list[Piece], dict[str, Any]]:
    """One piece for each of `items` (the inputs of each text), in order, and the tensors for the donor's forward.

    The donor's processor is given `snippet` for each input and no other text. The images of a text are processed
    together, since their tiling may depend on their number; an end-of-text token, which no donor writes for an image,
    separates them.
    """
    tokenizer = donor.tokenizer
    separator = tokenizer.eos_token
    if modality != "image" or separator is None:
        items = [[item] for sample in items for item in sample]
    texts = [(separator or "").join([snippet] * len(sample)) for sample in items]
    media = items if modality == "image" else [item for sample in items for item in sample]
    name = ARGUMENT[modality]
    given = {name: media, f"{name}_kwargs": options, "text_kwargs": {"padding": True, "add_special_tokens": False}}
    made = dict(donor(text=texts, return_tensors="pt", **given))
    ids, kept = made.pop("input_ids"), made.pop("attention_mask").bool()
    along = {key: made.pop(key) for key in PER_TOKEN if key in made}
    pieces: list[Piece] = []
    for i, mask in enumerate(kept):
        row = ids[i][mask].tolist()
        values = {key: value[i][mask].tolist() for key, value in along.items()}
        for start, end in _between(row, tokenizer.eos_token_id if len(items[i]) > 1 else None):
            pieces.append((row[start:end], {key: value[start:end] for key, value in values.items()}))
    return pieces, made


def _between(row: list[int], separator: int | None) -> list[tuple[int, int]]:
    """The start and end of each part between separators; those of the whole row without a separator."""
    if separator is None:
        return [(0, len(row))]
    cuts = [i for i, token in enumerate(row) if token == separator]
    return list(zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(row)], strict=True))


def translation(omni: Any, donor: Any, entries: list[dict[str, Any]]) -> Callable[[int], int]:
    """A function from the donor's token ids to omni token ids, for the tokenizers `omni` and `donor`.

    Placeholder tokens are matched by `entries` ("donor_token" and "token"), other tokens by their name, or by "rename".
    The function raises ValueError for a token that the omni tokenizer does not have.
    """
    known = {donor.convert_tokens_to_ids(e["donor_token"]): omni.convert_tokens_to_ids(e["token"]) for e in entries}
    rename = {old: new for entry in entries for old, new in entry.get("rename", {}).items()}

    def translate(token_id: int) -> int:
        if token_id not in known:
            token = donor.convert_ids_to_tokens(token_id)
            token = rename.get(token, token)
            found = omni.convert_tokens_to_ids(token)
            if found is None or (found == omni.unk_token_id and token != omni.unk_token):
                raise ValueError(f"The omni tokenizer has no {token!r}, which a donor's processor writes.")
            known[token_id] = int(found)
        return known[token_id]

    return translate
