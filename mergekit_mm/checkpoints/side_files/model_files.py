"""The side files of one model, looked up by name and read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.*", "*.tiktoken"),
    *("tekken.json", "spiece.model", "sentencepiece*.model", "spm*.model"),
)
PROCESSOR = ("*processor_config.json", "chat_template.*", "generation_config.json")
# files that no loader reads
_WITHOUT_EFFECT = (
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.md", "*.txt", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif"),
    *("*.svg", "*.webp", "Modelfile", "configuration.json", "*.yaml", "*.yml", "*.sh", "*.ipynb"),
)
_WITHOUT_VOCABULARY = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """The side files of an input, or of an output as planned. An adapter's files replace those of its model."""

    name: str  # for messages
    model_type: str  # transformers' name of the architecture
    config: Mapping[str, Any]  # config.json
    files: Mapping[str, Path]  # path below the model's directory -> file
    damaged: set[Path] = field(default_factory=set)  # JSON files that could not be read
    _read: dict[str, dict[str, Any]] = field(default_factory=dict)

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file; empty if the file is absent or damaged."""
        if name not in self._read:
            self._read[name] = self._parsed(name)
        return self._read[name]

    def _parsed(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        try:
            held = json.loads(self.files[name].read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            held = None
        if not isinstance(held, dict):
            self.damaged.add(self.files[name])
            return {}
        return held

    def text(self, name: str) -> str | None:
        """The content of a text file; None if the file is absent."""
        return self.files[name].read_text(encoding="utf-8", errors="replace") if name in self.files else None

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a vocabulary in any format, or code that may have one."""
        named = [name for name in self.files if is_of_tokenizer(name) and name not in _WITHOUT_VOCABULARY]
        return bool(named) or "auto_map" in self.json("tokenizer_config.json")


def is_of_tokenizer(name: str) -> bool:
    """Whether a file belongs to a tokenizer, by its name."""
    return any(fnmatch(name, pattern) for pattern in TOKENIZER)


def is_of_model(name: str) -> bool:
    """Whether the name of a file shows that its directory holds a model or a model's processor."""
    return name == "config.json" or is_of_tokenizer(name) or any(fnmatch(name, pattern) for pattern in PROCESSOR)


def is_read_as_it_is(name: str) -> bool:
    """Whether a loader may read a file. False for files of tokenizers and processors, which are compared by content."""
    last = name.rpartition("/")[2]
    apart = "/" not in name and (is_of_tokenizer(name) or any(fnmatch(name, pattern) for pattern in PROCESSOR))
    return not apart and not any(fnmatch(last, pattern) for pattern in _WITHOUT_EFFECT)


def chat_template(files: ModelFiles) -> str | None:
    """The chat template of a model, from the first file that holds it; None if there is none."""
    if (jinja := files.text("chat_template.jinja")) is not None:
        return jinja
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = files.json(name).get("chat_template")
        if isinstance(template, list):  # older tokenizers save several templates by name
            template = next((each.get("template") for each in template if each.get("name") == "default"), None)
        if isinstance(template, str):
            return template
    return None
