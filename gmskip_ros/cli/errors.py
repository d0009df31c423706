"""What a command raises when it cannot go on."""


class CliError(Exception):
    """The message is one line that names the thing and the remedy."""
