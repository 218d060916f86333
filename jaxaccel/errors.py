"""The one exception for mistakes that a person can mend."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message is one line that says what to do instead.

    Command lines print it as ``error: MESSAGE`` and exit with code 2, without a traceback.
    """
