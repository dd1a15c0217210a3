"""``python -m sparsebench``."""

from sparsebench.cli import main

main()
