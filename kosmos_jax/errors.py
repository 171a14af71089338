"""Errors that are for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do.

    The command line prints the message alone, without a stack trace.
    """
