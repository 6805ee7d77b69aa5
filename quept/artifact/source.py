"""What a person may type for a model, and what lies beside it.

resolve_source("smollm2-135m")             built in, with the artifact of it that is opened by itself
resolve_source("smollm2-135m:weight-act")  with this one, of assets/MODEL/VARIANT
resolve_source("smollm2-135m:rtn")         without: rounded to nearest
resolve_source("runs/mine")                the folder of an artifact, whose manifest names its base
resolve_source("org/name")                 a hub id or a model folder: rounded to nearest

Nothing is loaded, and whether there is such a model at all is for `quept.models.load` to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quept import zoo
from quept.brief import brief
from quept.zoo.catalogue import ASSETS

from .manifest import FILE_NAME, ArtifactError, Manifest
from .store import Artifact

PLAIN = "rtn"


@dataclass(frozen=True)
class Source:
    """asked: what was typed. base: what `load` takes. artifact: the folder of the artifact; None where the
    base is rounded to nearest."""

    asked: str
    base: str
    artifact: Path | None = None

    @property
    def entry(self) -> zoo.ModelEntry | None:
        """The built-in model that is meant, if one is."""
        return zoo.MODELS.get(self.base)

    @property
    def name(self) -> str:
        """As pages and files call it: names travel, paths do not."""
        return Path(self.asked).name

    @property
    def models(self) -> tuple[str, ...]:
        """The names that a plan for it may say it was made for: of the base, and as it was asked for."""
        return tuple(dict.fromkeys((Path(self.base).name, self.name)))

    def beside(self, name: str) -> Path | None:
        """The file `name` (sensitivity.json, front.json, results.json, ablation.json) of the artifact, or
        else of its base; None where there is none."""
        folders = [ASSETS / self.base if self.entry else Path(self.base)]
        if self.artifact:
            folders.insert(0, self.artifact)
        return next((path for folder in folders if (path := folder / name).is_file()), None)

    def check_cached(self, fingerprint: str) -> None:
        """ArtifactError where a built-in model as it was loaded is not the one that its bundled artifacts
        were made for: what lies in the cache has rotted."""
        for variant in variants(self.base):
            if Manifest.read(ASSETS / self.base / variant).fingerprint != fingerprint:
                raise ArtifactError(
                    f"the weights of {self.base} in {zoo.cache_dir()} have changed since they were fetched: "
                    f"`quept pull {self.base} --verify` fetches them again"
                )


def resolve_source(asked: str | Path) -> Source:
    """Returns what is meant. ArtifactError for a variant that does not exist and for a damaged manifest."""
    asked = str(asked)
    if Artifact.is_one(asked):
        return Source(asked, Manifest.read(Path(asked)).base, Path(asked))
    base, _, variant = asked.partition(":")
    known = variants(base)
    if base not in zoo.MODELS or variant == PLAIN:
        return Source(asked, base if base in zoo.MODELS else asked)
    if variant and variant not in known:
        raise ArtifactError(
            f"no artifact {brief(repr(asked))}; there is {', '.join(f'{base}:{v}' for v in (*known, PLAIN))}"
        )
    return Source(asked, base, ASSETS / base / (variant or known[0]) if known else None)


def variants(model: str) -> tuple[str, ...]:
    """Returns the names of the artifacts that come with a built-in model, the one opened by itself first."""
    found = (
        (path.parent.name for path in ASSETS.glob(f"{model}/*/{FILE_NAME}")) if model in zoo.MODELS else ()
    )
    return tuple(sorted(found, reverse=True))  # weight-only, weight-act
