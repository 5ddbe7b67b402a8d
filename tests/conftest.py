"""What holds for all tests: no look-ups on the network, no threads that spin while they wait; what is slow."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium

# Before any test imports torch or transformers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

FAST_FAMILIES = ("llava", "qwen2_vl", "qwen2_audio")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with a case for each of many families, `make test-fast` runs those of three."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("family", "llava") not in FAST_FAMILIES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser for all tests of a process; see `helpers/browser.py`."""
    with chromium() as running:
        yield running
