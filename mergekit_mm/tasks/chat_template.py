"""mergekit's `chat_template:`: a template by its name, as text, or the one that most inputs have."""

from __future__ import annotations

from mergekit.config import MergeConfiguration
from mergekit.merge import _set_chat_template
from transformers import PreTrainedTokenizerBase


def set_chat_template(tokenizer: PreTrainedTokenizerBase, config: MergeConfiguration, trust_remote_code: bool) -> None:
    """Give a tokenizer the template that a config asks for, as mergekit 0.1 does after a merge.

    mergekit's own function for it is private, and its templates are files of mergekit. A test holds its signature.

    Raises:
        RuntimeError: the config asks for a template that does not exist.
    """
    _set_chat_template(tokenizer, config, trust_remote_code=trust_remote_code)
