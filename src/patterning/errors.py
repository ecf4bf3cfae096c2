"""The one exception a user is meant to see: what was wrong, where, and what to do."""


class PatterningError(ValueError):
    """Bad input or an impossible request, found before the expensive part.

    The command line prints the message as one sentence and exits with code 2.
    """
