"""Units made by the nodes of a Ray cluster: a task for each, which is sent names and returns hashes, never a tensor."""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.errors import MergeError, SystemRefusal
from mergekit_mm.execution.elsewhere import Job, make
from mergekit_mm.execution.machine import PER_PROCESS
from mergekit_mm.execution.making import Made
from mergekit_mm.execution.progress import Progress
from mergekit_mm.execution.units import Unit

_TRIES = 4  # of a unit, on whatever node there is
_WAITING = 2  # units for each that is being made, so that a node that has ended one has the next at once


class RayCluster:
    """A cluster that is connected, as a context."""

    def __init__(self, address: str, on_gpu: bool) -> None:
        """address: of a running cluster, or `auto` for the one that this machine belongs to.

        Raises:
            MergeError: Ray is not installed, or there is no such cluster.
        """
        self._ray, self._on_gpu = _imported(), on_gpu
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            try:
                _connect_once(address)
                self._ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (
                OSError,
                ValueError,
                RuntimeError,
                SystemExit,
            ) as error:  # Ray ends the process where nothing answers
                reason = str(error).strip().splitlines()[0]
                raise MergeError(
                    f"No Ray cluster answers at {address} ({reason}). `ray start --head` starts one here."
                ) from error

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()

    @property
    def width(self) -> int:
        """How many units can be made at the same time."""
        return max(1, int(self._ray.cluster_resources().get("GPU" if self._on_gpu else "CPU", 1)))

    def made(self, units: Iterable[Unit], job: Job, tell: Progress) -> Iterator[tuple[Unit, Made]]:
        """Each unit as soon as some node has made it. One whose process or node is lost is made by another.

        Raises:
            SystemRefusal: a unit is lost again and again.
            Exception: a unit has raised it.
        """
        ray, lost, units = self._ray, Counter[Unit](), list(units)
        self._require_memory(units)
        task = ray.remote(max_retries=0, retry_exceptions=False)(make)
        where = ray.put(job)
        waiting, running = deque(units), dict[Any, Unit]()
        try:
            while waiting or running:
                while waiting and len(running) < _WAITING * self.width:
                    unit = waiting.popleft()
                    sent = task.options(num_cpus=1, num_gpus=int(self._on_gpu), memory=unit.memory + PER_PROCESS)
                    running[sent.remote(where, unit.names)] = unit
                ended, _ = ray.wait(list(running), num_returns=1)
                unit = running.pop(ended[0])
                try:
                    made: Made = ray.get(ended[0])
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause or error) from error
                except ray.exceptions.RayError as error:
                    lost[unit] += 1
                    reason = str(error).strip().splitlines()[0]
                    if lost[unit] == _TRIES:
                        raise SystemRefusal(f"{unit} was lost {_TRIES} times: {reason}") from error
                    tell(f"{unit} was lost ({reason}), and is made again.")
                    waiting.appendleft(unit)
                else:
                    yield unit, made
        finally:
            for each in running:
                ray.cancel(each, force=True)

    def _require_memory(self, units: Iterable[Unit]) -> None:
        """SystemRefusal if no node is large enough for some unit, for which Ray would wait without end."""
        largest = max(units, key=lambda unit: unit.memory, default=None)
        most = max((node["Resources"].get("memory", 0) for node in self._ray.nodes() if node["Alive"]), default=0)
        if largest and largest.memory + PER_PROCESS > most:
            raise SystemRefusal(
                f"{largest} takes {size_of(largest.memory + PER_PROCESS)} of memory, and the largest node of the "
                f"cluster offers {size_of(int(most))}."
            )


def _connect_once(address: str) -> None:
    """OSError if nothing listens at HOST:PORT, for which Ray itself would wait for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MergeError("A Ray cluster needs Ray: pip install 'mergekit-mm[ray]', on every node.") from error
    return ray
