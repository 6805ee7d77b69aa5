"""The error that a calibration run ends with."""


class CalibrationError(RuntimeError):
    """A run that cannot start or finish; the message says why and what to type."""
