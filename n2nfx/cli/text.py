"""Text from files and models, made safe to show."""


def printable(text: str) -> str:
    """The text as one line: whatever could move a cursor or break the line is written as code.

    Names in an artifact are whatever its author liked them to be.
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
