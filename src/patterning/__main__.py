"""`python -m patterning`: the `patterning` command."""

from patterning.cli import main

main()
