# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What is registered with anomalib, and where: the one place that says so.

anomalib resolves names along four routes, and each of them needs something else.

===================================================== ==========================================================
route                                                 served by
===================================================== ==========================================================
``--model X``, ``--data X``, ``class_path: X``        the class is imported (jsonargparse walks the subclasses)
``list_models()``, ``get_model("x")``                 the class is imported, a *direct* child of ``AnomalibModule``
``get_model({"class_path": "X"})``, ``get_datamodule`` an attribute of ``anomalib.models`` or ``anomalib.data``
``get_model({"class_path": "anomalib_comet.models.X"})`` ``anomalib.models.ALLOWED_MODULES``
===================================================== ==========================================================

Normally nobody imports this module: the hook in ``anomalib_comet_autoload`` calls :func:`register` right after anomalib
has been imported. Where the hook cannot run (a notebook kernel that was started before the installation,
``python -S``, ``pip install --target``) call it yourself.

Example:
    >>> from anomalib_comet import plugin
    >>> plugin.register()
    >>> from anomalib.models import get_model
    >>> model = get_model("co_met_differ_net", backbone="gabor")
"""

import logging
from importlib import import_module
from types import ModuleType

logger = logging.getLogger(__name__)

DATAMODULES = ("ContaminatedDataModule", "FewShotDataModule", "KolektorSDD2", "ProceduralSurfaces", "VIADUCT")
MODELS = (
    "CoMetDifferNet",
    "CoMetFastflow",
    "CoMetSimpleNet",
    "CoMetStfpm",
    "CoMetSupersimplenet",
    "DifferNet",
    "FunAd",
    "MultidirectionalMeta",
    "SimpleNet",
)

# anomalib's module: our module, and the classes of ours that become attributes of anomalib's.
_REGISTERED: dict[str, tuple[str, tuple[str, ...]]] = {
    "anomalib.data": ("anomalib_comet.data", DATAMODULES),
    "anomalib.models": ("anomalib_comet.models", MODELS),
}


def register(*hosts: str) -> None:
    """Make our classes known to anomalib under their short names; calling it again changes nothing.

    Args:
        *hosts: Modules of anomalib to register in, ``"anomalib.data"`` or ``"anomalib.models"``. Both by default.

    Raises:
        ValueError: If nothing of ours belongs into one of ``hosts``.
    """
    for name in hosts:
        if name not in _REGISTERED:
            msg = f"Nothing is registered in {name!r}; choose from {', '.join(map(repr, _REGISTERED))}."
            raise ValueError(msg)
    for name in hosts or _REGISTERED:
        ours, class_names = _REGISTERED[name]
        # Theirs first: our modules are written to find anomalib's complete.
        host = import_module(name)
        _set_attributes(host, import_module(ours), class_names)
        if hasattr(host, "ALLOWED_MODULES"):
            host.ALLOWED_MODULES.add(ours)


def _set_attributes(host: ModuleType, ours: ModuleType, class_names: tuple[str, ...]) -> None:
    """Set our classes as attributes of anomalib's module, without replacing anything that anomalib brings itself."""
    for class_name in class_names:
        cls = getattr(ours, class_name)
        if getattr(host, class_name, cls) is cls:
            setattr(host, class_name, cls)
        else:
            logger.warning(
                "%s has a %s of its own: use the full path %s.%s for the one of anomalib_comet.",
                host.__name__,
                class_name,
                ours.__name__,
                class_name,
            )
