# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Code blocks of README, pages and model cards, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/README.md")],
    key=lambda path: path.relative_to(ROOT),
)
_BLOCK = re.compile(
    r"^(?:<!-- (?P<file>\w+\.py) -->\s+)?(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``file`` is the name that a comment before it gives it."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    """All fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    found = [
        Block(page, content[: match.start("indent")].count("\n") + 1, match["language"], match["text"], match["file"])
        for match in _BLOCK.finditer(content)
    ]
    assert 2 * len(found) == len(re.findall(r"^ *```", content, flags=re.MULTILINE)), f"{page}: a fence is not closed"
    return found


def commands(text):
    """The commands of a shell block, each a list of words; comments are left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        command = []
        for word in shlex.split(line, comments=True):
            if word == "&&":
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    return [command for command in found if command]


def printed_as_promised(text):
    """What a block says that it prints: the comments behind its calls of print."""
    return re.findall(r"^print\(.*\)  # (.*)$", text, flags=re.MULTILINE)
