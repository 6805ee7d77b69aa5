"""What all data have in common."""


class DataError(ValueError):
    """Data that are none, or too few; the message says which and what to do."""
