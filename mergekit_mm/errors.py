"""The exception types for what a user can mend: one for merges, one for evaluations."""

from __future__ import annotations

import click


class MergeError(click.ClickException):
    """A config or an input is not fit to be merged; the message says what is wrong, where, and what to do.

    On the command line the message is all that is shown. Any other exception is a bug, of this package or of a
    host, and ends in a traceback.
    """


class EvaluationError(ValueError):
    """An evaluation cannot run as it was asked for; the message says what is wrong, where, and what to do.

    `lm_eval` shows the message alone.
    """
