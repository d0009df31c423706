"""The base class of every expected error."""


class UserError(Exception):
    """Something that the user can put right.

    The message is one line that names the thing, the value and the remedy. Each room raises
    subclasses of its own; commands raise this one. The command line prints the message without a
    traceback.
    """
