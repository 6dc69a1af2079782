"""What is wrong with the input of `make feature`."""


class MistakeError(Exception):
    """The input cannot be used. The message is one sentence that says what to change."""
