"""mergekit learns of our merge methods, by its public registry, and of our `run_merge`; both only in versions we know.

`register_methods` and `install_run_merge` may be called any number of times and in any order, by the start-up hook or
by `import mergekit_mm.register`. They raise when something is wrong; the hook turns the error into one warning.
"""

import functools
import importlib.metadata
import warnings

from packaging.specifiers import SpecifierSet

METHODS_GROUP = "mergekit_mm.methods"  # the group of entry points by which other distributions bring methods
SUPPORTED_MERGEKIT = SpecifierSet(">=0.1.5,<0.2")  # as in pyproject.toml


def check_mergekit_version() -> None:
    """RuntimeError: the installed mergekit is outside `SUPPORTED_MERGEKIT`, and so nothing must be installed into it.

    With the methods but without the plan for multimodal models, a merge would exit with 0 and write a damaged model.
    """
    found = importlib.metadata.version("mergekit")
    if not SUPPORTED_MERGEKIT.contains(found, prereleases=True):
        raise RuntimeError(f"mergekit {found} is not supported: pip install 'mergekit{SUPPORTED_MERGEKIT}'")


def register_methods() -> None:
    """Put every method of the catalogue into mergekit's registry (mergekit 0.1.5 up to 0.2).

    A name that is taken stays with the method that has it, with a warning.
    """
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
    """Add the methods that other distributions bring; a method that cannot be loaded is left out with a warning."""
    from mergekit_mm.methods import add

    for point in importlib.metadata.entry_points(group=METHODS_GROUP):
        try:
            add(point.load())
        except Exception as error:
            warnings.warn(
                f"The merge method {point.name!r} ({point.value}) is not added: {error}", RuntimeWarning, stacklevel=3
            )


def install_run_merge() -> None:
    """Route mergekit's `run_merge` through this package, see `hosts.run_merge`."""
    check_mergekit_version()
    from mergekit_mm.hosts import run_merge

    run_merge.install()
