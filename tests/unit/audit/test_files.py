# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Files before and after the audit: which images are below a folder, and moving those that were selected."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from anomalib_comet.audit.images import images_below

PAGE = (Path(__file__).parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
(CLEAN_UP,) = re.findall(r"^.*audit_delete\.txt$", PAGE, flags=re.MULTILINE)


def touched(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return [str(path) for path in paths]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs GNU mv and xargs")
def test_the_clean_up_of_the_page_loses_no_image(tmp_path):
    """Equal names in different folders, and again in a second round."""
    contents = []
    for number in range(2):
        listed = []
        for folder in ("a", "b c"):
            path = tmp_path / folder / "it's 1.png"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{folder} {number}")
            listed.append(str(path))
            contents.append(f"{folder} {number}")
        (tmp_path / "audit_delete.txt").write_text("".join(f"{path}\n" for path in listed))
        subprocess.run(["bash", "-ec", CLEAN_UP], cwd=tmp_path, check=True)
        assert not any(Path(path).exists() for path in listed)
    assert sorted(path.read_text() for path in (tmp_path / "rejected").iterdir()) == sorted(contents)


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    own = touched(root / "z" / "1.png", root / "z" / "2.JPG")
    touched(elsewhere / "deep" / "3.png")
    (root / "z" / "up").symlink_to(root, target_is_directory=True)
    (root / "a").symlink_to(root / "z", target_is_directory=True)  # a second name of what is there without links
    (root / "b").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "deep" / "back").symlink_to(elsewhere, target_is_directory=True)
    (root / "broken").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    assert images_below(root) == sorted([*own, str(root / "b" / "deep" / "3.png")])
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert len(images_below(tmp_path / "link")) == 3
