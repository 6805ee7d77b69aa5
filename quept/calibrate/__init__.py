"""Calibration: a model in, an artifact on disk out.

job  one calibration run, by method
"""

from .job import CalibrationError, calibrate

__all__ = ["CalibrationError", "calibrate"]
