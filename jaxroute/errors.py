"""The one exception that bad input ends in."""


class InputError(ValueError):
    """Bad input from the user: the message names the place (file, row, field) and the remedy.

    The command line prints it as one line and exits with code 2.
    """
