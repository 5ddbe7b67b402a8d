"""A merge config from its text, with mergekit's findings said in one sentence."""

from __future__ import annotations

from itertools import takewhile

import yaml
from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from mergekit_mm.errors import MergeError


def read_config(source: str, name: str) -> MergeConfiguration:
    """What mergekit reads in the YAML text `source`; `name` says in errors where that is from.

    Raises:
        MergeError: it is no YAML, or no merge config.
    """
    try:
        return MergeConfiguration.model_validate(yaml.safe_load(source))
    except ValidationError as error:
        found = error.errors()
        # A union reports one error for each of its types: they share the place.
        shared = takewhile(lambda keys: len(set(keys)) == 1, zip(*(e["loc"] for e in found), strict=False))
        where = ".".join(str(keys[0]) for keys in shared) or "the whole"
        told = found[0]["msg"] if len(found) == 1 else f"{found[0]['input']!r} cannot stand there"
        raise MergeError(f"{name} is no merge config: {where}: {told}") from error
    except (yaml.YAMLError, RuntimeError) as error:  # mergekit's own validators raise RuntimeError.
        raise MergeError(f"{name} is no merge config: {error}") from error
