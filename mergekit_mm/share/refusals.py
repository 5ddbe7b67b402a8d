"""What the hub or the network refuses, as one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from mergekit_mm.errors import MergeError

_BUGS = (LookupError, TypeError, AttributeError, AssertionError, NameError)  # no answer of a hub raises these
LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def refused(repo: str, what: str, then: str = "") -> Iterator[None]:
    """A context of calls of the hub's library alone: what the hub or the network refuses becomes a MergeError.

    repo: what is written to. what: the subject of the sentence, such as "The upload". then: what to do where the
    network failed.
    """
    try:
        yield
    except _BUGS:
        raise
    except Exception as error:
        raise MergeError(_told(error, repo, what, then)) from error


def _told(error: Exception, repo: str, what: str, then: str) -> str:
    causes = list(_causes(error))
    answer = next((each for each in causes if isinstance(each, HfHubHTTPError)), None)
    said = _in_a_line(answer.server_message or str(answer)) if answer else ""
    status = answer.response.status_code if answer else 0
    if status == 401:
        return f"The hub does not take the token: {said} To write to {repo}, {LOGIN}."
    if status in (403, 404):  # it says 404 where it does not say whether there is such a repository
        return (
            f"The token may not write to {repo} ({said.removesuffix('.')}). It takes one with write access there: "
            f"{tokens_page()}"
        )
    if status:
        asks = then if status >= 500 else ""
        return f"{what} to {repo} was refused by the hub with status {status}: {said} {asks}".rstrip()
    endpoint = huggingface_hub.constants.ENDPOINT
    reasons = dict.fromkeys(_in_a_line(str(each) or type(each).__name__).removesuffix(".") for each in causes)
    return f"{what} to {repo} failed, as {endpoint} cannot be reached ({': '.join(reasons)}). {then}".rstrip()


def tokens_page() -> str:
    """Where a user makes tokens."""
    return f"{huggingface_hub.constants.ENDPOINT}/settings/tokens"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _in_a_line(text: str) -> str:
    return f"{' '.join(text.split()).removesuffix('.')}."
