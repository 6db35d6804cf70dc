"""``python -m ubfabric`` is the command line."""

from ubfabric.cli import main

main()
