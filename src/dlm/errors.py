"""The one exception that users see; pipeline/start.py turns it into a line and an exit code."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and the remedy, in one line."""
