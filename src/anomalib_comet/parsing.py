# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What parsers and signatures say, in a form for people: shared by the commands."""

from __future__ import annotations

import inspect


def sentence(error: BaseException) -> str:
    """Return the first two lines of an error's message as one, cut after 400 characters.

    Args:
        error: Any error.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."  # noqa: PLR2004


def innermost(error: BaseException) -> str:
    """Return what a parser's error is about, which stands at the bottom of a tree of everything that was tried.

    Args:
        error: Error of jsonargparse.

    Returns:
        One sentence.
    """
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    end = next((k for k, line in enumerate(lines) if line.startswith("Given value")), len(lines))
    tried = [line for line in lines[:end] if line and line != "Expected a <class 'NoneType'>"]
    start = max((k + 1 for k, line in enumerate(tried[:-1]) if line.endswith(":")), default=0)
    return sentence(ValueError("\n".join(tried[start:]))) if tried else type(error).__name__


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
