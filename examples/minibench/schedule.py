"""Products made in processes of their own, several at a time, each as soon as those that it needs exist."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import IO, Any

from examples.common import forked
from examples.minibench.products import Product


def build_all(products: Sequence[Product], out: Path, jobs: int, prepare: Callable[[], None] = forked.preload) -> None:
    """Make the products that do not exist yet, `jobs` at a time, the first of those that can be made first.

    Each process has one thread. What it writes to standard error, such as the course of training, is shown while it is
    the only one, else only if it fails. prepare: called before the first process, for what all of them share.

    Raises:
        SystemExit: a product is needed that neither exists nor is among these, or one could not be made. No other
            process goes on then, nor after an interruption; what they began is begun again the next time.
    """
    folders = {product.name: product.folder(out) for product in products}
    waiting = [product for product in products if not folders[product.name].exists()]
    if kept := len(products) - len(waiting):
        print(f"{kept} of {len(products)} products exist already and are kept, in {out}", flush=True)
    lacking = {product.name: _lacking(product, {each.name for each in waiting}, out) for product in waiting}
    if not waiting:
        return
    prepare()
    running: dict[Any, _Job] = {}
    try:
        while waiting or running:
            for product in [each for each in waiting if not lacking[each.name]][: jobs - len(running)]:
                job = _Job(product, out, alone=jobs == 1)
                running[job.process.sentinel] = job
                waiting.remove(product)
            for sentinel in connection.wait(list(running)):
                job = running.pop(sentinel)
                job.finish()
                for needed in lacking.values():
                    needed.discard(job.product.name)
    finally:
        for job in running.values():
            job.kill()


def _lacking(product: Product, planned: set[str], out: Path) -> set[str]:
    """The products that one needs and that are still to be made. SystemExit: nobody makes them."""
    lacking = {each.name for each in product.needs if not each.folder(out).exists()}
    if absent := sorted(lacking - planned):
        raise SystemExit(f"{product.name} needs {', '.join(absent)}: add their stage to --stages")
    return lacking


class _Job:
    """A process that makes one product. It leads a process group, to which the commands that it starts belong."""

    def __init__(self, product: Product, out: Path, alone: bool) -> None:
        self.product = product
        self.output = None if alone else tempfile.TemporaryFile()  # noqa: SIM115 # read at the end
        self.message = tempfile.TemporaryFile()  # noqa: SIM115
        sys.stdout.flush()
        self.process: ForkProcess = get_context("fork").Process(target=self._make, args=(out,))
        self.process.start()

    def _make(self, out: Path) -> None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.output:
            os.dup2(self.output.fileno(), 2)
        try:
            forked.one_thread()
            self.product.build(out)
        except SystemExit as end:
            self._fail(str(end.code))
        except BaseException:
            self._fail(traceback.format_exc())

    def _fail(self, message: str) -> None:
        self.message.write(message.encode())
        self.message.flush()
        sys.exit(1)

    def finish(self) -> None:
        """Wait for the end. SystemExit: it failed, with what it said."""
        self.process.join()
        if self.process.exitcode:
            told = _read(self.message) or f"its process ended with code {self.process.exitcode}"
            output = _read(self.output) if self.output and "Traceback" in told else ""
            raise SystemExit(f"{output}{self.product.name} failed: {told}".rstrip())

    def kill(self) -> None:
        """End the process, and the commands that it started."""
        for end in (os.killpg, os.kill):  # it may not lead its group yet
            try:
                end(self.process.pid or 0, signal.SIGKILL)
                break
            except ProcessLookupError:
                continue
        self.process.join()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
