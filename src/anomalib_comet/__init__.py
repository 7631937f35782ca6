# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Train anomalib detectors on uncurated, contaminated image data.

The package imports nothing until it is asked for something, because the hook that registers it with anomalib is present
in every Python process of an environment.

Example:
    >>> from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
    >>> from anomalib_comet.models import CoMetDifferNet
    >>> from anomalib.engine import Engine
    >>> datamodule = ContaminatedDataModule(ProceduralSurfaces(), ratio=0.1)
    >>> Engine(max_epochs=5).train(CoMetDifferNet(backbone="gabor"), datamodule=datamodule)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

__all__ = ["__version__"]

_SUBPACKAGES = frozenset({"backbones", "confident_meta_learning", "data", "models"})


def __getattr__(name: str) -> Any:
    """Look the version up, or import a subpackage, at the first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("anomalib-comet")
    if name in _SUBPACKAGES:
        from importlib import import_module  # noqa: PLC0415

        return import_module(f"{__name__}.{name}")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
