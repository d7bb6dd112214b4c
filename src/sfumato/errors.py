"""The one exception that a user's mistake raises."""


class SfumatoError(ValueError):
    """A mistake of the user's, said in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
