"""The same merge by a Ray cluster of two nodes, on this machine: the same bytes, whatever is lost meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from end_to_end import checkpoint, experts, fresh, linear, merge, plugin, refused, run, with_method, written
from interruptions import contents, made

RAY = "MERGEKIT_MM_RAY"
SHARDS = ("--out-shard-size", "20K")


def config() -> dict[str, Any]:
    """A merge of many units that take some tenths of a second, by a method that the nodes know."""
    slow = {"preset": "full", "iterations": 2000}
    return with_method("optmerge", checkpoint("llava"), experts("llava")[:2], parameters=slow)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "300000"}
    started = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    started.add_node(**node())
    try:
        yield started
    finally:
        started.shutdown()


def node() -> dict[str, Any]:
    """The arguments of a node of one core. Its ports are given, as it waits no more than seconds to be told of them."""
    agents = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port")
    sizes = {"num_cpus": 1, "memory": 4 << 30, "object_store_memory": 80 << 20}
    return {**sizes, **{name: free_port() for name in agents}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def on_ray(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(RAY, cluster.address)
    return cluster


def alone() -> dict[str, bytes]:
    """The output of one process here."""
    before = os.environ.pop(RAY, None)
    try:
        return contents(merge(config(), *SHARDS).out)
    finally:
        if before:
            os.environ[RAY] = before


def meanwhile(out: Path, act: Callable[[], None]) -> Any:
    """A merge on the cluster, and something that happens once three of its tensors are made."""
    is_over = threading.Event()

    def wait() -> None:
        while made(out) < 3 and not is_over.is_set():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        return merge(config(), *SHARDS, out=out)
    finally:
        is_over.set()
        thread.join()


def test_the_same_bytes_as_in_one_process(on_ray: Any) -> None:
    outcome = merge(config(), *SHARDS)
    assert contents(outcome.out) == alone()
    assert "2 workers" in outcome.console
    recipe, out, whole = written(config()), fresh("on_ray"), fresh("alone")
    assert plugin("sweep", recipe, out, "--scaling", "0.5,1", "--ray", on_ray.address).exit_code == 0
    del os.environ[RAY]
    assert plugin("sweep", recipe, whole, "--scaling", "0.5,1").exit_code == 0
    assert contents(out) == contents(whole)


def test_workers_that_are_killed(on_ray: Any) -> None:
    """All that there are at some moment."""

    def kill() -> None:
        for process in psutil.process_iter(["cmdline"]):
            name = (process.info["cmdline"] or [""])[0]
            if name.startswith(("ray::make", "ray::IDLE")) and _is_ours(process):
                process.kill()

    out = fresh("merged")
    outcome = meanwhile(out, kill)
    assert "was lost" in outcome.console
    assert contents(out) == alone()


def _is_ours(process: psutil.Process) -> bool:
    """Whether a process belongs to the cluster of these tests."""
    return os.getpid() in [parent.pid for parent in process.parents()]


def test_a_node_that_is_lost(on_ray: Any) -> None:
    third, out = on_ray.add_node(**node()), fresh("merged")
    meanwhile(out, lambda: on_ray.remove_node(third, allow_graceful=False))
    assert contents(out) == alone()


def test_the_merge_itself_is_killed_and_goes_on(on_ray: Any) -> None:
    out = fresh("merged")
    command = [sys.executable, "-m", "mergekit_mm", "yaml", str(written(config())), str(out), *SHARDS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while made(out) < 5:
        assert process.poll() is None, "it has come to its end before"
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = made(out)
    assert not out.exists()
    assert f"continuing: {done} of " in merge(config(), *SHARDS, out=out).console
    assert contents(out) == alone()


def test_a_refusal_is_that_of_one_process(on_ray: Any) -> None:
    refused(linear(fresh("nothing")), "nothing")


def test_a_cluster_that_is_not_there() -> None:
    pytest.importorskip("ray")
    os.environ[RAY] = "127.0.0.1:1"
    try:
        assert "No Ray cluster answers at 127.0.0.1:1" in run(config()).error
    finally:
        del os.environ[RAY]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY, "auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(config(), "pip install 'mergekit-mm[ray]'")
