"""mergekit's `run_merge`, which every command of mergekit calls to merge models, asks this package first.

Merges in its scope (`mergekit_mm.plan.scope`) are run here; all others by mergekit, as if the plugin were not there.
"""

from __future__ import annotations

import sys
from typing import Any


def install() -> None:
    """Replace `mergekit.merge.run_merge` (mergekit 0.1.5 up to 0.2), once.

    Of its parameters `merge_config`, `out_path`, `options` and `config_source` are known here.
    """
    import mergekit.merge  # local: the start-up hook calls this function when that module is imported

    from mergekit_mm.hosts.wrapping import wrap

    original = mergekit.merge.run_merge
    wrap(mergekit.merge, "run_merge", _run_merge)
    # Commands that were imported before this call hold the function itself.
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "mergekit" and getattr(module, "run_merge", None) is original:
            vars(module)["run_merge"] = mergekit.merge.run_merge


def _run_merge(original: Any, *arguments: Any, **options: Any) -> Any:
    from mergekit_mm.console import log_by_environment
    from mergekit_mm.errors import bugs_reported
    from mergekit_mm.hosts.wrapping import bound
    from mergekit_mm.plan.scope import is_planned_here

    given = bound(original, *arguments, **options).arguments
    config, merge_options = given["merge_config"], given["options"]
    log_by_environment()
    with bugs_reported():
        if is_planned_here(config, merge_options.transformers_cache):
            from mergekit_mm.merge import run_multimodal_merge

            return run_multimodal_merge(config, given["out_path"], merge_options, given["config_source"])
    return original(*arguments, **options)
