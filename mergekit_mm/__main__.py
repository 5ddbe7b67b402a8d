"""`python -m mergekit_mm` is `mergekit-mm`."""

from mergekit_mm.cli import main

main(prog_name="mergekit-mm")
