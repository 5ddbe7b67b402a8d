"""What the start-up hook does once mergekit has been imported: register the methods, install the `run_merge` seam.

Both functions may be called any number of times, in any order, by the hook or by `import mergekit_mm.register`.
They raise when something is wrong; the hook turns that into one warning.
"""

import functools
import importlib.metadata
import warnings

from packaging.specifiers import SpecifierSet

METHODS_GROUP = "mergekit_mm.methods"  # of entry points: name = "module:function", made by `task_vector_method`
SUPPORTED_MERGEKIT = SpecifierSet(">=0.1.5,<0.2")  # as in pyproject.toml


def check_mergekit_version() -> None:
    """Raise RuntimeError outside `SUPPORTED_MERGEKIT`.

    Half a plugin would be worse than none: with the methods but without the plan for multimodal models, a merge would
    exit 0 and write a damaged model. So outside the range nothing is installed at all.
    """
    found = importlib.metadata.version("mergekit")
    if not SUPPORTED_MERGEKIT.contains(found, prereleases=True):
        raise RuntimeError(f"mergekit {found} is not supported: pip install 'mergekit{SUPPORTED_MERGEKIT}'")


def register_methods() -> None:
    """Put every method of the catalogue into mergekit's registry; a name that the host has taken stays the host's."""
    check_mergekit_version()
    import mergekit.merge_methods as host

    from mergekit_mm.methods import catalogue

    _add_installed()
    taken = {method.spec.name: method for method in host.registered_methods()}
    for method in catalogue():
        name = method.name
        if name not in taken:
            host.register(method.host)
        elif taken[name] is not method.host:
            warnings.warn(
                f"mergekit already has a merge method {name!r}, which stays in place; mergekit-mm's is not registered.",
                RuntimeWarning,
                stacklevel=2,
            )


@functools.cache
def _add_installed() -> None:
    """Add the methods that other distributions bring; one that cannot be had is a warning, and the others go on."""
    from mergekit_mm.methods import add

    for point in importlib.metadata.entry_points(group=METHODS_GROUP):
        try:
            add(point.load())
        except Exception as error:
            warnings.warn(
                f"The merge method {point.name!r} ({point.value}) is not added: {error}", RuntimeWarning, stacklevel=3
            )


def install_run_merge() -> None:
    """Route mergekit's `run_merge` through the plugin, which plans multimodal models and leaves text-only ones be."""
    check_mergekit_version()
    from mergekit_mm.hosts import run_merge

    run_merge.install()
