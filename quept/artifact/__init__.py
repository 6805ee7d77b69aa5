"""The artifact: what calibration leaves on disk, bound to the base model it was made for.

manifest    the JSON side: format version, method, base and its fingerprint, grid, files with their hashes
parameters  what was learned of one layer: its adapter and clip factors
store       open, save, verify; and the weight of any layer at any width
bundle      the artifacts that come with the program, by name
"""

from .bundle import bundled, split, variants
from .manifest import ArtifactError, Manifest
from .parameters import LayerParameters
from .store import Artifact

__all__ = ["Artifact", "ArtifactError", "LayerParameters", "Manifest", "bundled", "split", "variants"]
