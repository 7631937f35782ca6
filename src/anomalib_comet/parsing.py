# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What parsers and signatures say, in a form for people: shared by the commands."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = re.compile(r'(?:Parser )?key "([^"]+)":')
"""How jsonargparse names the argument that the lines below are about."""


def sentence(error: BaseException) -> str:
    """Return the first two lines of an error's message as one, cut after 400 characters.

    Args:
        error: Any error.
    """
    return _shortened(str(error).splitlines()) or type(error).__name__


def _shortened(lines: Sequence[str]) -> str:
    text = " ".join([" ".join(line.split()) for line in lines if line.strip()][:2])
    return text if len(text) <= 400 else f"{text[:400]}..."  # noqa: PLR2004


def innermost(error: BaseException, root: str = "", prefix: str = "") -> str:
    """Return what a parser's error is about, which stands at the bottom of a tree of everything that was tried.

    Args:
        error: Error of jsonargparse.
        root: Name of the parser's argument below which the user's names begin; it is not said. Defaults to none.
        prefix: What is put before the name of the argument that is wrong. Defaults to nothing.

    Returns:
        One sentence. It begins with the argument's name where the error has it.
    """
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    end = next((k for k, line in enumerate(lines) if line.startswith("Given value")), len(lines))
    given = next((line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")), "")
    tried = [line for line in lines[:end] if line and line != "Expected a <class 'NoneType'>"]
    if not tried:
        return type(error).__name__
    start = max((k + 1 for k, line in enumerate(tried[:-1]) if line.endswith(":")), default=0)
    said = _shortened(tried[start:])
    if given and said.startswith("Expected a <class") and "Got value" not in said:
        said = _shortened([f"{said}. Got value: {given}"])
    name = next((found[1] for line in reversed(tried) if (found := KEY.match(line))), root)
    name = "" if name == root else name.removeprefix(f"{root}.").removeprefix("init_args.")
    return f"{prefix}{name}: {said}" if name else said


def accepted_arguments(model_class: type) -> set[str]:
    """Return the names of a class's arguments, with those that ``**kwargs`` hand on to its parents, as CoMet's do.

    Args:
        model_class: Any class.
    """
    names: set[str] = set()
    for cls in model_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names - {"self"}
