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
    """A merge of many small units, which the nodes can make: by a method that they know."""
    return with_method("optmerge", checkpoint("llava"), experts("llava")[:2], parameters={"preset": "full"})


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


def meanwhile(out: Path, tensors_made: int, act: Callable[[], None]) -> Any:
    """A merge on the cluster, and something that happens once so many tensors are made."""

    def wait() -> None:
        end = time.monotonic() + 300
        while made(out) < tensors_made and time.monotonic() < end:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        return merge(config(), *SHARDS, out=out)
    finally:
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


def test_a_worker_that_is_killed(on_ray: Any) -> None:
    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for process in psutil.process_iter(["cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith("ray::make") and _is_ours(process):
                    process.kill()
                    return

    out = fresh("merged")
    outcome = meanwhile(out, 3, kill)
    assert "was lost" in outcome.console
    assert contents(out) == alone()


def _is_ours(process: psutil.Process) -> bool:
    """Whether a process belongs to the cluster of these tests."""
    return os.getpid() in [parent.pid for parent in process.parents()]


def test_a_node_that_is_lost(on_ray: Any) -> None:
    third, out = on_ray.add_node(**node()), fresh("merged")
    meanwhile(out, 3, lambda: on_ray.remove_node(third, allow_graceful=False))
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
