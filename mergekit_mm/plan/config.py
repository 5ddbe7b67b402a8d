"""A merge config from its text, with mergekit's errors in one sentence."""

from __future__ import annotations

from itertools import takewhile

import yaml
from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from mergekit_mm.errors import MergeError


def read_config(source: str, name: str) -> MergeConfiguration:
    """The config that mergekit reads from a YAML text; `name` is that of the text in messages.

    Raises:
        MergeError: the text is no YAML, or no merge config.
    """
    try:
        return MergeConfiguration.model_validate(yaml.safe_load(source))
    except ValidationError as error:
        errors = error.errors()
        # A union reports one error for each of its types; the keys that their places share lead to the value.
        shared = takewhile(lambda keys: len(set(keys)) == 1, zip(*(each["loc"] for each in errors), strict=False))
        where = ".".join(str(keys[0]) for keys in shared) or "the whole"
        problem = errors[0]["msg"] if len(errors) == 1 else f"{errors[0]['input']!r} cannot stand there"
        raise MergeError(f"{name} is no merge config: {where}: {problem}") from error
    except (yaml.YAMLError, RuntimeError) as error:  # mergekit's own validators raise RuntimeError.
        raise MergeError(f"{name} is no merge config: {error}") from error
