"""What a command tells the user instead of a traceback."""


class CommandError(Exception):
    """Something that the user can put right: one line, exit status 2."""
