"""`python -m dlm.command` is `dlm`."""

from dlm.command import cli

cli()
