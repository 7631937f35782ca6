# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Console script ``anomalib-comet``: anomalib's own command line with our classes registered, hook or no hook.

It has two subcommands more, ``audit`` and ``sweep``.
"""

import sys
from collections.abc import Sequence
from typing import Any


def main(args: Sequence[str] | None = None) -> None:
    """Run anomalib's command line on ``args``.

    Args:
        args: Command line without the program's name, as in ``["train", "--model", "CoMetDifferNet"]``.
            ``None`` (default) takes ``sys.argv[1:]``.
    """
    args = sys.argv[1:] if args is None else list(args)
    if args == ["--version"]:
        _print_versions()
        return

    if args[:1] == ["sweep"]:
        from anomalib_comet.sweep.command import main as sweep  # noqa: PLC0415  # imports anomalib when it has to

        sys.exit(sweep(args[1:]))

    # Nothing heavy at the top of this file: whether anomalib can be imported at all is only found out here.
    from anomalib_comet import plugin  # noqa: PLC0415

    plugin.register()

    if args[:1] == ["audit"]:
        from anomalib_comet.audit.command import main as audit  # noqa: PLC0415

        sys.exit(audit(args[1:]))

    from anomalib.cli import AnomalibCLI  # noqa: PLC0415
    from anomalib.loggers import configure_logger  # noqa: PLC0415

    class CommandLine(AnomalibCLI):
        """Anomalib's command line; its help names our own subcommands."""

        def add_subcommands(self, **kwargs: Any) -> None:
            super().add_subcommands(**kwargs)
            self.parser.epilog = (
                "Of anomalib_comet: `anomalib-comet audit` lists the suspicious training images, and "
                "`anomalib-comet sweep` measures what contamination costs any model."
            )

    configure_logger()
    CommandLine(args)


def _print_versions() -> None:
    """Print our version and anomalib's, which a bug report needs together."""
    from importlib.metadata import version  # noqa: PLC0415

    for name in ("anomalib-comet", "anomalib"):
        print(f"{name} {version(name)}")


if __name__ == "__main__":
    main()
