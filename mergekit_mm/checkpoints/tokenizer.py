"""The tokenizer of a checkpoint, loaded by transformers."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mergekit_mm.errors import MergeError


def load_tokenizer(
    name: str, source: Path | str, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or of a model on the hub. `name` is the model as the user wrote it, for messages.

    Raises:
        MergeError: it cannot be loaded. transformers and tokenizers raise errors of any type for damaged files.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, revision=revision
        )
    except Exception as error:
        raise MergeError(f"The tokenizer of {name} cannot be loaded: {error}") from error
    return tokenizer
