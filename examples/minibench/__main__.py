"""Make the benchmark stage by stage: material, tower, bases, experts, merges, the scores of all of them, and a report.

    python -m examples.minibench --quick                         # few pictures and few steps
    python -m examples.minibench --stages material tower base    # the first three stages
    python -m examples.minibench --stages report                  # from what has been made so far

Products go to out/minibench/, or to --out. One that exists with the same settings is not made again, so that the
same command goes on after an interruption. Test questions are asked in the stages `test`, `aligned` and `modalities`
only. The report goes to `report` in there, or to `report-quick`, and is always made anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Each job has one thread of every library; the environment has to say so before these are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from examples.common.commands import ROOT
from examples.minibench import packages


def main() -> None:
    if lacking := packages.missing():
        told = f"The material is in packages, of which {', '.join(lacking)} cannot be found."
        raise SystemExit(f"{told} Install them by: pip install --editable '.[minibench]'")
    from examples.minibench.plan import FULL, QUICK, STAGES, Products
    from examples.minibench.reporting import REPORT, make_report
    from examples.minibench.schedule import build_all
    from examples.minibench.scores import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures and few steps, one base and one seed")
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, REPORT), default=(*STAGES, REPORT))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "minibench")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="products made at a time; default: the cores")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs must be 1 or more")
    out = arguments.out.resolve()
    products = Products(QUICK if arguments.quick else FULL, out)
    stages = [stage for stage in STAGES if stage in arguments.stages]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the run ends its jobs before it exits
    try:
        build_all([product for stage in stages for product in products.stage(stage)], out, arguments.jobs)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from here") from None
    results = products.results()
    for stage, split in (("validation", "validation"), ("test", "test")):
        if stage in stages:
            shown = [each for each in results if each.split == split and each.setting != "grid"]
            print(f"\nscores on {split} questions, in percent\n{table(shown)}")
    if "aligned" in stages:
        print(f"\nscores of aligned merges on test questions, in percent\n{table(products.alignments().results())}")
    if REPORT in arguments.stages:
        quick = arguments.quick
        folder = out / (f"{REPORT}-quick" if quick else REPORT)
        print(make_report(products, folder, "python -m examples.minibench" + " --quick" * quick))


if __name__ == "__main__":
    main()
