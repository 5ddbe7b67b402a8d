"""What holds for all tests: no look-ups on the network, no threads that spin while they wait; what is slow."""

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium

# Before any test imports torch or transformers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

FAST_FAMILIES = ("llava", "qwen2_vl", "qwen2_audio")


def pytest_configure(config: pytest.Config) -> None:
    """One directory for the zoo of all processes of a run: each family is built once, by whichever asks first."""
    if "MM_ZOO" not in os.environ:  # The processes that xdist starts inherit it.
        os.environ["MM_ZOO"] = directory = tempfile.mkdtemp(prefix="mergekit-mm-zoo-")
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first. Of a test with a case for each of many families, `make test-fast` runs those of three."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("family", "llava") not in FAST_FAMILIES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _machine() -> None:
    """lm-eval's results describe the machine, for which it starts pip and compilers each time: here once a process."""
    if "lm_eval" in sys.modules:
        from torch.utils import collect_env

        collect_env.get_pretty_env_info = functools.cache(collect_env.get_pretty_env_info)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser for all tests of a process; see `helpers/browser.py`."""
    with chromium() as running:
        yield running
