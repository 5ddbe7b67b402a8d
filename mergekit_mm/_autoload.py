"""Start-up hook, by which stock `mergekit-yaml` finds this plugin. A Python that never needs it pays almost nothing.

`mergekit_mm.pth` calls `install` whenever Python starts; from Python 3.15 on, `mergekit_mm.start` does so (PEP 829). So
this module imports only `os` and `sys`, both of which are loaded before it. The plugin itself is imported after a host
module in `HOOKS` has been executed. `MERGEKIT_MM_AUTOLOAD=0` in the environment turns the hook off.
"""

import os
import sys

TYPE_CHECKING = False  # Importing `typing` would slow every start; type checkers take this name for its constant.
if TYPE_CHECKING:
    from typing import Any

# Host module -> the function that is called, without arguments, right after the module has been executed.
HOOKS = {
    "mergekit.merge_methods": "mergekit_mm.hosts.registration:register_methods",
    "mergekit.merge": "mergekit_mm.hosts.registration:install_run_merge",
    "lm_eval.tasks.manager": "mergekit_mm.hosts.lm_eval_tasks:install",
    "lm_eval.models": "mergekit_mm.hosts.lm_eval_model:register",
    "lm_eval._cli.harness": "mergekit_mm.hosts.lm_eval_command:install",
    "transformers.models.auto.configuration_auto": "mergekit_mm.hosts.transformers_auto:register_config",
    "transformers.models.auto.processing_auto": "mergekit_mm.hosts.transformers_auto:register_processor",
}
outcomes: "dict[str, str]" = {}  # host module -> "" after success, else the error, for `mergekit-mm doctor`


class _Finder:
    """Finds the modules in `HOOKS` only, by the other finders, and gives them a loader that calls the hook."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in HOOKS or name in outcomes:
            return None
        others = [each for each in sys.meta_path if each is not self and hasattr(each, "find_spec")]
        spec: Any = next((found for each in others if (found := each.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    """The real loader, with a call of the hook after the module is executed; the module keeps the real loader."""

    def __init__(self, real: "Any") -> None:
        self.real = real

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.__dict__["real"], name)

    def exec_module(self, module: "Any") -> None:
        module.__loader__ = module.__spec__.loader = self.real
        self.real.exec_module(module)
        # Python's import binds the name only after this method; the hook may need it for `host.module.name` already.
        package, _, child = module.__name__.rpartition(".")
        if package:
            setattr(sys.modules[package], child, module)
        run_hook(module.__name__)


finder: "Any" = _Finder()


def install() -> None:
    """Watch for imports of the modules in `HOOKS`, and run the hooks of those already imported. Can be called again."""
    if os.environ.get("MERGEKIT_MM_AUTOLOAD") == "0" or outcomes.keys() >= HOOKS.keys():
        return
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    for host in HOOKS:
        if host in sys.modules and host not in outcomes:
            run_hook(host)


def run_hook(host: str) -> None:
    """Call the function for `host`; an error becomes a warning. After the last hook the finder is removed."""
    outcomes[host] = ""  # This is set first, since the function imports the host again.
    try:
        import importlib

        module, function = HOOKS[host].split(":")
        getattr(importlib.import_module(module), function)()
    except Exception as error:  # A broken plugin must not stop the host.
        outcomes[host] = f"{type(error).__name__}: {error}"
        _warn(host)
    if outcomes.keys() >= HOOKS.keys() and finder in sys.meta_path:
        sys.meta_path.remove(finder)


def _warn(host: str) -> None:
    """Warn that the hook of a host module failed, with the versions of both packages."""
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
    except RuntimeWarning:  # Under `-W error` a warning is an exception; the import of the host must not fail by it.
        print(text, file=sys.stderr)
