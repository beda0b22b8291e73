"""The one exception that bad input ends in."""


class InputError(ValueError):
    """Bad input from the user: the message names the place (file, row, field) and the remedy.

    The command line prints it as one line and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
