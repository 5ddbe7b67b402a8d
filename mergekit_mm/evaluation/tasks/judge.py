"""A language model that extracts the answer from a reply with more words than the answer.

It is used only if the run names it, by `--metadata '{"judge": {"url": "http://localhost:8000/v1", "model": "..."}}'`,
which lm-eval also writes into its result file. `OPENAI_API_KEY` in the environment is sent as the key. The judge only
extracts; the rules decide whether an answer is right.
"""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any
from urllib.request import Request, urlopen

_INSTRUCTION = (
    "Below are a question and a model's reply to it. Write the reply's final answer and nothing else: the option's "
    "letter if the question has options, otherwise the number, list or expression. If the reply has no final answer, "
    "write: none."
)
_TRIES = 3


def check(judge: Any) -> None:
    """Raise ValueError unless `judge` is None or names a url and a model."""
    if judge is not None and not (isinstance(judge, Mapping) and {"url", "model"} <= judge.keys()):
        raise ValueError(f'judge is {judge!r}; it must be {{"url": ..., "model": ...}}')


def extract(question: str, reply: str, judge: Mapping[str, str]) -> str:
    """The final answer that the judge finds in `reply`; empty, with a logged warning, if it cannot be reached."""
    said = f"{_INSTRUCTION}\n\nQuestion:\n{question}\n\nReply:\n{reply}"
    body = {
        "model": judge["model"],
        "temperature": 0,
        "max_tokens": 128,
        "messages": [{"role": "user", "content": said}],
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = Request(judge["url"].rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers)
    for left in reversed(range(_TRIES)):
        try:
            with urlopen(request, timeout=60) as response:
                return str(json.load(response)["choices"][0]["message"]["content"] or "").strip()
        except (OSError, ValueError, LookupError, TypeError) as error:  # one reply must not end a run of hours
            if not left:
                logging.getLogger(__name__).warning("the judge at %s did not answer: %s", judge["url"], error)
    return ""
