"""The base class of every expected error, and what is shown of any error."""


class UserError(Exception):
    """Something that the user can put right.

    The message is one line that names the thing, the value and the remedy. Each room raises
    subclasses of its own; commands raise this one. The command line prints the message without a
    traceback.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, to go on from; its type's name if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip('.:') if lines else type(error).__name__
