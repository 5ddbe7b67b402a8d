"""A merge config from its text, with mergekit's errors in one sentence."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from mergekit_mm.errors import MergeError

_MOST = 1_000_000  # values in a config; the longest has some hundred


def read_config(source: str, name: str) -> MergeConfiguration:
    """The config that mergekit reads from a YAML text; `name` is that of the text in messages.

    Raises:
        MergeError: the text is no YAML, or no merge config.
    """
    try:
        content = yaml.safe_load(source)
        if _size(content, {}) > _MOST:
            raise MergeError(f"{name} is no merge config: its aliases stand for more than {_MOST} values.")
        return MergeConfiguration.model_validate(content)
    except MergeError:
        raise
    except ValidationError as error:
        errors = error.errors()
        # A union reports one error for each of its types; the keys that their places share lead to the value.
        shared = takewhile(lambda keys: len(set(keys)) == 1, zip(*(each["loc"] for each in errors), strict=False))
        where = ".".join(str(keys[0]) for keys in shared) or "the whole"
        problem = errors[0]["msg"] if len(errors) == 1 else f"{errors[0]['input']!r} cannot stand there"
        raise MergeError(f"{name} is no merge config: {where}: {problem}") from error
    except (yaml.YAMLError, RuntimeError, ValueError) as error:
        # mergekit's own validators raise RuntimeError, as Python does for what is nested too deep; a date or a number
        # that there is not is a ValueError.
        raise MergeError(f"{name} is no merge config: {error}") from error


def _size(value: Any, known: dict[int, int]) -> int:
    """The number of values that a value stands for, where each alias of YAML counts as what it is an alias of.

    known: the sizes of containers by their identity; one that holds itself counts as without end.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST + 1
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(value)]
