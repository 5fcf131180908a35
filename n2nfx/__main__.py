"""`python -m n2nfx` is the command line."""

from n2nfx.cli import main

main()
