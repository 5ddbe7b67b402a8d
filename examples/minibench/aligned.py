"""Merges that learn from a few unlabelled samples: the settings of the stage `aligned`.

Not to be taken for the alignment that a base begins with (`alignment.py`), in which it learns to look.

For each set of experts there is a start, the best merge without data, and from it each row is made with few and with
many samples for each expert. Samples are of the calibration split. A row that has several settings takes the one that
is best on validation questions; test questions are asked once, of the models with that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from examples.minibench.material import CAPABILITIES


@dataclass(frozen=True)
class Case:
    """What a merge is aligned by.

    samples: for each expert. draws: how many times they are drawn. without: a capability whose expert has no samples.
    elsewhere: whether they are the samples from elsewhere (see `calibration.py`).
    """

    samples: int
    draws: int = 1
    without: str = ""
    elsewhere: bool = False

    @property
    def name(self) -> str:
        """The `setting` of the results, such as `64` or `64 without ocr`."""
        more = f" without {self.without}" if self.without else " elsewhere" if self.elsewhere else ""
        return f"{self.samples}{more}"


@dataclass(frozen=True)
class Row:
    """A way to align, with the cases in which it is looked at.

    options: of `mergekit-mm align`. tries: more options, of which those are taken that are best on validation
    questions. on_base: whether the base takes the place of the merge.
    """

    name: str
    options: tuple[str, ...]
    cases: tuple[Case, ...]
    tries: tuple[tuple[str, ...], ...] = ((),)
    on_base: bool = False


@dataclass(frozen=True)
class Aligned:
    """All settings that the results depend on.

    starts: by way of training, the methods of which the one that is best on validation questions is the start. They
    are methods of this package: mergekit's have no coefficients. to_choose: the case by which settings of rows are
    chosen.
    """

    rows: tuple[Row, ...]
    starts: Mapping[str, tuple[str, ...]]
    to_choose: Case


_FEW_TO_MANY = (Case(5, draws=3), Case(16, draws=2), Case(64))
# What becomes of a capability without samples, and what samples do that are not like the test questions.
_STUDIES = (*(Case(64, without=each) for each in CAPABILITIES), Case(64, elsewhere=True))
_ADAPTER = ("--way", "adapter", "--batch-size", "64")
_ADAPTER_TRIES = (("--rate", "0.001"), ("--rate", "0.003"))
FULL = Aligned(
    rows=(
        Row("adapter", _ADAPTER, (*_FEW_TO_MANY, *_STUDIES), _ADAPTER_TRIES),
        Row(
            "coefficients",
            ("--way", "coefficients", "--batch-size", "64"),
            (*_FEW_TO_MANY, *_STUDIES),
            (("--rate", "0.01"), ("--rate", "0.03")),
        ),
        # As released, and with steps as many and as large as those of the rows above.
        Row(
            "expert_merging",
            ("--preset", "expert-merging", "--batch-size", "64"),
            _FEW_TO_MANY,
            ((), ("--steps", "80", "--per-step", "48", "--check", "10", "--rate", "0.1", "--anchor", "0")),
        ),
        Row("adapter_on_base", _ADAPTER, _FEW_TO_MANY[1:], _ADAPTER_TRIES, on_base=True),
    ),
    starts={
        "full": ("optmerge",),
        "lora": (
            "tsv",
            "iso_c",
            "iso_cts",
            "wudi",
            "optmerge",
            "swudi",
            "aswudi",
            "task_arithmetic_svc",
            "optmerge_svc",
            "actmat",
            "dc_merge",
            "robust_merge",
        ),
    },
    to_choose=Case(16, draws=2),
)
QUICK = Aligned(
    rows=(Row("adapter", (*_ADAPTER, "--steps", "20"), (Case(16),)),),
    starts={"full": ("optmerge",), "lora": ("optmerge",)},
    to_choose=Case(16),
)
