# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Print the path of a usable uv; install one into ``.uv/`` of this repository if the machine has none.

Called by the Makefile, so that ``make test`` and ``make demo`` need nothing but Python, git and make. Nothing outside
the repository is touched. Only the standard library is used, in the Python that happens to be there (3.8 or newer).

Distributions like to take ``venv`` and ``pip`` out of Python. So there are three ways to get uv from the package index,
and the first that works is taken: a virtual environment; the machine's pip with a target directory; a pip downloaded
for this purpose and run from its wheel.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

OLDEST = (0, 8)
HOME = Path(__file__).resolve().parents[1] / ".uv"
PIP_INSTALL = ["install", "--quiet", "--only-binary=:all:", "uv>={}.{}".format(*OLDEST)]
# Options of pip that are meant for other installations, and would fail or divert this one.
DIVERTING = ("PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONPATH")


def usable(uv):
    """Whether a program is there, runs (version managers leave dead stand-ins behind) and is not too old."""
    try:
        version = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(r"uv (\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= OLDEST


def in_a_virtual_environment():
    """Install uv into a virtual environment of its own."""
    run(sys.executable, "-m", "venv", str(HOME))
    run(str(HOME / "bin" / "python"), "-m", "pip", *PIP_INSTALL)


def with_the_pip_of_the_machine():
    """Install uv into a directory with the pip that is there."""
    run(sys.executable, "-m", "pip", *PIP_INSTALL, "--target", str(HOME))


def with_a_downloaded_pip():
    """Install uv into a directory with a pip that is thrown away afterwards."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    request = urllib.request.Request(index, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    wheels = [file for file in files if re.fullmatch(r"pip-[\d.]+-py3-none-any\.whl", file["filename"])]
    newest = max(wheels, key=lambda file: [int(part) for part in file["filename"].split("-")[1].split(".")])
    with urllib.request.urlopen(urllib.parse.urljoin(index, newest["url"]), timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != newest["hashes"]["sha256"]:
        raise OSError(f"{newest['url']} does not have the checksum that its index states")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / newest["filename"]
        wheel.write_bytes(content)
        run(sys.executable, str(wheel / "pip"), *PIP_INSTALL, "--target", str(HOME))


def run(*command):
    """Run a command silently; what it says matters only if no way works."""
    environment = {name: value for name, value in os.environ.items() if name not in DIVERTING}
    environment.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(done.stdout.strip())


def main():
    """Find or install uv, and print where it is."""
    own = str(HOME / "bin" / "uv")
    for candidate in (shutil.which("uv"), own):
        if candidate and usable(candidate):
            print(candidate)
            return

    print(f"No usable uv on this machine: installing one into {HOME}", file=sys.stderr)
    failures = []
    for install in (in_a_virtual_environment, with_the_pip_of_the_machine, with_a_downloaded_pip):
        shutil.rmtree(HOME, ignore_errors=True)
        try:
            install()
        except (KeyError, OSError, ValueError) as error:
            failures.append(f"- {install.__name__.replace('_', ' ')}: {error}")
            continue
        if usable(own):
            print(own)
            return
        failures.append(f"- {install.__name__.replace('_', ' ')}: there is no usable uv at {own} afterwards")
    shutil.rmtree(HOME, ignore_errors=True)
    sys.exit(
        "uv could not be installed. With access to a package index, one of these is enough: Python's venv with "
        "ensurepip (Debian and Ubuntu: apt install python3-venv), pip, or uv itself on the PATH "
        "(https://docs.astral.sh/uv/getting-started/installation). What was tried:\n" + "\n".join(failures)
    )


if __name__ == "__main__":
    main()
