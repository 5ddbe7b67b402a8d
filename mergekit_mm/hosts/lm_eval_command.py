"""The command `lm_eval` ends with the message of an error that the user can mend, and not with a traceback."""

from __future__ import annotations

import sys
from typing import Any


def install() -> None:
    """Replace `lm_eval._cli.harness.HarnessCLI.execute` (lm-eval 0.4.13 up to 0.5), once."""
    from lm_eval._cli.harness import HarnessCLI  # local: the start-up hook calls this when that module is imported

    from mergekit_mm.hosts.wrapping import wrap

    wrap(HarnessCLI, "execute", _execute)


def _execute(original: Any, *arguments: Any, **options: Any) -> Any:
    import click

    from mergekit_mm.console import log_by_environment, log_error
    from mergekit_mm.errors import EvaluationError

    try:
        log_by_environment()
        return original(*arguments, **options)
    except (EvaluationError, click.FileError) as error:  # the second if the log file cannot be written
        message = error.format_message()
        log_error(message, error)
        sys.exit(f"Error: {message}")
