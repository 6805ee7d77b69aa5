"""Artifacts that come with the program: assets/MODEL/VARIANT, named "MODEL" or "MODEL:VARIANT".

bundled("smollm2-135m")             the variant that is opened unless somebody asks otherwise
bundled("smollm2-135m:weight-act")  this one
split("smollm2-135m:rtn")           ("smollm2-135m", "rtn"): no folder, plain rounding of the base
"""

from __future__ import annotations

from pathlib import Path

from quept import zoo

from .manifest import FILE_NAME, ArtifactError

FOLDER = Path(__file__).parent.parent.parent / "assets"
PLAIN = "rtn"


def split(source: str | Path) -> tuple[str, str]:
    """(model, variant): a built-in model's name and what stands behind its colon, "" for nothing."""
    model, colon, variant = str(source).partition(":")
    return (model, variant) if colon and model in zoo.MODELS else (str(source), "")


def variants(model: str) -> tuple[str, ...]:
    """Names of the artifacts that come with a built-in model, the one that is opened by itself first."""
    if model not in zoo.MODELS:
        return ()
    found = (path.parent.name for path in (FOLDER / model).glob(f"*/{FILE_NAME}"))
    return tuple(sorted(found, reverse=True))  # weight-only, weight-act


def bundled(source: str | Path) -> Path | None:
    """The folder of a bundled artifact; None for a model that has none, a folder or a hub id, and where plain
    rounding is asked for. ArtifactError for a variant that does not exist."""
    model, variant = split(source)
    known = variants(model)
    if variant == PLAIN or not (variant or known):
        return None
    if variant and variant not in known:
        raise ArtifactError(
            f"no artifact {source!r}; there is {', '.join(f'{model}:{v}' for v in (*known, PLAIN))}"
        )
    return FOLDER / model / (variant or known[0])
