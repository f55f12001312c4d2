"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Bad input: a configuration, a file or a machine that cannot serve the run.

    The message is one paragraph that names the file, key or value and says what to do. The command
    line prints it without a traceback and exits with code 2.
    """
