# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Register anomalib_comet with anomalib as soon as anomalib itself is imported.

anomalib finds models and data modules by looking at what is already imported and offers no way to announce more.
This module is the missing announcement. Two files beside it make Python call :func:`install` at start-up:
``anomalib_comet_autoload.pth`` up to Python 3.14 and ``anomalib_comet_autoload.start`` (PEP 829) from 3.15 on.

It runs in *every* Python process of the environment, so it imports nothing that the interpreter has not already loaded,
touches nothing until anomalib is imported, and never lets an error through to its host.
Set the environment variable ``ANOMALIB_COMET_AUTOLOAD=0`` to switch it off.
"""

import os
import sys

# Type checkers know this name; importing ``typing`` at every start of Python would cost more than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "ANOMALIB_COMET_AUTOLOAD"
_HOSTS = ("anomalib.data", "anomalib.models")
_PACKAGE_PREFIX = "anomalib_comet."


class AnomalibFinder:
    """Finder on ``sys.meta_path`` that registers our classes once anomalib's modules have been executed.

    Registration waits until no watched module is being executed any more. Whatever is imported first (``anomalib.data``
    from within ``anomalib.models``, or ``anomalib_comet.backbones``, which imports ``anomalib.models``), our modules
    are therefore never entered while half of them, or half of anomalib, is still missing.
    """

    def __init__(self) -> None:
        self._unregistered = list(_HOSTS)
        # Names rather than a counter: appending and removing are atomic where several threads import at once.
        self._executing: list[str] = []
        self._warned = False

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Find a watched module by the finders behind this one, and make its loader report to :meth:`execute`."""
        if fullname not in _HOSTS and not fullname.startswith(_PACKAGE_PREFIX):
            return None
        position = sys.meta_path.index(self) if self in sys.meta_path else -1
        for finder in sys.meta_path[position + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _ReportingLoader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def execute(self, loader: "Any", module: "ModuleType") -> None:
        """Execute a watched module; if no other one is waiting for it, register what anomalib has loaded so far."""
        self._executing.append(module.__name__)
        try:
            loader.exec_module(module)
            if len(self._executing) == 1:
                self._register()
        finally:
            self._executing.remove(module.__name__)

    def _register(self) -> None:
        """Register in each part of anomalib that is loaded, and retire after the last one."""
        while loaded := [host for host in self._unregistered if host in sys.modules]:
            self._unregistered.remove(loaded[0])
            already_imported = set(sys.modules)
            try:
                from anomalib_comet import plugin  # noqa: PLC0415

                plugin.register(loaded[0])
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the plugin, anomalib must go on
                reason = f"{type(error).__name__}: {error}"
            else:
                continue
            _forget_modules_except(already_imported)
            self._warn(reason)
        if not self._unregistered:
            # A new list: a thread that is looping over the old one would skip a finder if that were shortened.
            sys.meta_path = [finder for finder in sys.meta_path if finder is not self]

    def _warn(self, reason: str) -> None:
        """Say once what went wrong, also where warnings are turned into errors."""
        if self._warned:
            return
        self._warned = True
        message = (
            f"anomalib_comet could not register its models and data modules with anomalib ({reason}). anomalib works "
            f"without them. `anomalib-comet --help` shows the whole error, {SWITCH}=0 silences this warning."
        )
        import warnings  # noqa: PLC0415

        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:
            sys.stderr.write(f"{message}\n")


class _ReportingLoader:
    """Stand-in for a module's own loader that steps aside as soon as the module is executed."""

    def __init__(self, loader: "Any", finder: AnomalibFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Leave the creation of the module to its own loader."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        """Give the module its own loader back, then execute it."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._finder.execute(self._loader, module)


def _forget_modules_except(already_imported: set[str]) -> None:
    """Forget what a failed registration has imported of ours.

    A model class that was defined before the failure would stay listed as a subclass of ``AnomalibModule``. anomalib's
    command line imports the package of every listed class again, and would end with the error that was just contained.
    """
    import gc  # noqa: PLC0415

    for name in set(sys.modules) - already_imported:
        if name.startswith(_PACKAGE_PREFIX):
            del sys.modules[name]
    gc.collect()


def install() -> None:
    """Put the finder on ``sys.meta_path``, once, unless it is switched off."""
    if os.environ.get(SWITCH, "1").strip().lower() in {"0", "false", "no", "off"}:
        return
    if not any(isinstance(finder, AnomalibFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AnomalibFinder())
