"""`mllm_runs` under the name by which scripts outside of the suite import it; there are no tests in here."""

from mllm_runs import *  # noqa: F403
