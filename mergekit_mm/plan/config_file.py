"""A merge config as a file."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from mergekit_mm.errors import MergeError


def read_config(path: Path) -> tuple[str, MergeConfiguration]:
    """The text of a merge config, and mergekit's reading of it.

    MergeError: the file is no YAML, or no merge config; the message names the place in it.
    """
    try:
        source = path.read_text(encoding="utf-8")
        return source, MergeConfiguration.model_validate(yaml.safe_load(source))
    except ValidationError as error:
        found = error.errors()
        # Pydantic reports a union once for each of its types: the keys that all reports share name the place.
        shared = takewhile(lambda keys: len(set(keys)) == 1, zip(*(each["loc"] for each in found), strict=False))
        where = ".".join(str(keys[0]) for keys in shared) or "the whole"
        message = found[0]["msg"] if len(found) == 1 else f"{found[0]['input']!r} cannot stand there"
        raise MergeError(f"{path} is no merge config: {where}: {message}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RuntimeError) as error:  # mergekit's validators raise RuntimeError
        raise MergeError(f"{path} is no merge config: {error}") from error
