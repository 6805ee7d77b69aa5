"""The artifact: what calibration leaves on disk, bound to the base model it was made for.

manifest  the JSON side: format version, method, base and its fingerprint, grid, files with their hashes
store     open, save, verify; and the weight of any layer at any width
"""

from .manifest import ArtifactError, Manifest
from .store import Artifact

__all__ = ["Artifact", "ArtifactError", "Manifest"]
