"""`python -m dlm.cli` is `dlm`."""

from dlm.cli import cli

cli()
