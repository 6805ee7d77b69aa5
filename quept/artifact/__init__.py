"""The artifact: what calibration leaves on disk, bound to the base model it was made for.

manifest    the JSON side: format version, method, base and its fingerprint, grid, files with their hashes
store       open, save, verify, with the engine that reads it
bundle      the artifacts that come with the program, by name
"""

from .bundle import bundled, split, variants
from .manifest import ArtifactError, Manifest
from .store import Artifact

__all__ = ["Artifact", "ArtifactError", "Manifest", "bundled", "split", "variants"]
