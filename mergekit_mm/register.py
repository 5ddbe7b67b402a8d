"""`import mergekit_mm.register` plugs into mergekit at once, where the start-up hook cannot.

That is PYTHONPATH, `pip install --target`, `python -S`. Errors raise here, since the import is an explicit request.
"""

from mergekit_mm.hosts.registration import install_run_merge, register_methods

register_methods()
install_run_merge()
