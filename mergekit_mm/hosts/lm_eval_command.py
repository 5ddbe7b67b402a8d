"""The seam in lm-eval 0.4.13's command: what a user can mend ends in its message, and not in a traceback."""

from __future__ import annotations

import functools
import sys
from typing import Any


def install() -> None:
    """Let `lm_eval` end with the message of an `EvaluationError`, once."""
    from lm_eval._cli.harness import HarnessCLI  # local: the start-up hook calls this when that module is imported

    original = HarnessCLI.execute
    if getattr(original, "__mergekit_mm__", False):
        return

    @functools.wraps(original)
    def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        from mergekit_mm.errors import EvaluationError

        try:
            return original(self, *arguments, **options)
        except EvaluationError as error:
            sys.exit(f"Error: {error}")

    execute.__mergekit_mm__ = True  # type: ignore[attr-defined]
    HarnessCLI.execute = execute
