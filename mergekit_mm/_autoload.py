"""Start-up hook: stock `mergekit-yaml` finds this plugin, and an interpreter that never needs it pays nothing.

`mergekit_mm.pth` (its PEP 829 twin from Python 3.15: `mergekit_mm.start`) calls `install` whenever Python starts. So
this module imports only `os` and `sys`, both loaded before it; the plugin itself is imported after a host module in
`HOOKS` has run its own body. `MERGEKIT_MM_AUTOLOAD=0` in the environment turns all of it off.
"""

import os
import sys

TYPE_CHECKING = False  # `typing` would be an import at start-up
if TYPE_CHECKING:
    from typing import Any

# Host module -> function to call, without arguments, right after that module was imported.
HOOKS = {
    "mergekit.merge_methods": "mergekit_mm.hosts.registration:register_methods",
    "mergekit.merge": "mergekit_mm.hosts.registration:install_run_merge",
    "lm_eval.tasks.manager": "mergekit_mm.hosts.lm_eval_tasks:install",
    "lm_eval.models": "mergekit_mm.hosts.lm_eval_model:register",
    "lm_eval._cli.harness": "mergekit_mm.hosts.lm_eval_command:install",
    "transformers.models.auto.configuration_auto": "mergekit_mm.hosts.transformers_auto:register_config",
    "transformers.models.auto.processing_auto": "mergekit_mm.hosts.transformers_auto:register_processor",
}
outcomes: "dict[str, str]" = {}  # host module -> "" after success, else the error; `mergekit-mm doctor` reads it


class _Finder:
    """Answers for the modules in `HOOKS` only, with the spec that the other finders give."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in HOOKS or name in outcomes:
            return None
        others = [each for each in sys.meta_path if each is not self and hasattr(each, "find_spec")]
        spec: Any = next((found for each in others if (found := each.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    """The real loader, plus one call after the module's body; the module itself keeps the real one."""

    def __init__(self, real: "Any") -> None:
        self.real = real

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.__dict__["real"], name)

    def exec_module(self, module: "Any") -> None:
        module.__loader__ = module.__spec__.loader = self.real
        self.real.exec_module(module)
        # What import does next anyway; without it `import host.module; host.module.name` fails inside the hook.
        package, _, child = module.__name__.rpartition(".")
        if package:
            setattr(sys.modules[package], child, module)
        run_hook(module.__name__)


finder: "Any" = _Finder()


def install() -> None:
    """Watch for the imports in `HOOKS`, and serve those that have happened already. Harmless when called again."""
    if os.environ.get("MERGEKIT_MM_AUTOLOAD") == "0" or outcomes.keys() >= HOOKS.keys():
        return
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    for host in HOOKS:
        if host in sys.modules and host not in outcomes:
            run_hook(host)


def run_hook(host: str) -> None:
    """Call the function that `HOOKS` names for `host`; an error becomes one warning. The finder goes after the last."""
    outcomes[host] = ""  # set first: the function imports the host again
    try:
        import importlib

        module, function = HOOKS[host].split(":")
        getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever is wrong with the plugin, the host must go on
        outcomes[host] = f"{type(error).__name__}: {error}"
        _warn(host)
    if outcomes.keys() >= HOOKS.keys() and finder in sys.meta_path:
        sys.meta_path.remove(finder)


def _warn(host: str) -> None:
    import warnings
    from importlib import metadata

    try:
        package = host.partition(".")[0]
        pair = f"mergekit-mm {metadata.version('mergekit-mm')} and {package} {metadata.version(package)}"
    except metadata.PackageNotFoundError as missing:
        pair = f"mergekit-mm and {host} (no version known of {missing.name})"
    text = (
        f"{pair} do not work together, so this is off: {HOOKS[host]}: {outcomes[host]}. "
        "`mergekit-mm doctor` gives advice; MERGEKIT_MM_AUTOLOAD=0 silences this."
    )
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # under `-W error` too, the import of the host must not fail
        print(text, file=sys.stderr)
