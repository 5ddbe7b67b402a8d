"""The one exception type for what a user can mend."""

from __future__ import annotations

import click


class MergeError(click.ClickException):
    """A config or an input is not fit to be merged; the message says what is wrong, where, and what to do.

    On the command line the message is all that is shown. Any other exception is a bug, of this package or of a
    host, and ends in a traceback.
    """
