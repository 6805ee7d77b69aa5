"""The artifact: what calibration leaves on disk, bound to the base model it was made for.

manifest    the JSON side: format version, method, base and its fingerprint, grid, files with their hashes
store       open, save, verify, with the engine that reads it
source      what a person types for a model, and the files that lie beside it
"""

from .manifest import ArtifactError, Manifest
from .source import Source, resolve_source, variants
from .store import Artifact
