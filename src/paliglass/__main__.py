"""`python -m paliglass` is the `paliglass` command."""

from paliglass.cli import main

main()
