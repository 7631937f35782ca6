# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Print the path of a usable uv; install one into ``.uv/`` of this repository if the machine has none.

Called by the Makefile, so that ``make test`` and ``make demo`` need nothing but Python, git and make. Nothing outside the
repository is touched. Only the standard library is used, in the Python that happens to be there (3.8 or newer).

Three ways to get uv from the package index, the first that works is taken, because distributions like to take ``venv``
and ``pip`` out of Python: a virtual environment; the machine's pip with a target directory; a pip downloaded for this
purpose and run from its wheel.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

OLDEST = (0, 8)
HOME = Path(__file__).resolve().parents[1] / ".uv"
INDEX = "https://pypi.org/simple"
# pip options that make sense for other installations only, and would fail or divert this one.
DIVERTING = ("PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONPATH")


def usable(uv):
    """Whether a program is there, runs (version managers leave dead stand-ins behind) and is not too old."""
    try:
        version = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(r"uv (\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= OLDEST


def in_virtual_environment(environment):
    """Install uv into a virtual environment of its own."""
    run([sys.executable, "-m", "venv", "--clear", str(HOME)], environment)
    run([str(HOME / "bin" / "python"), *pip_install()], environment)


def with_pip_of_the_machine(environment):
    """Install uv into a directory with the pip that is there."""
    run([sys.executable, *pip_install("--target", str(HOME))], environment)


def with_downloaded_pip(environment):
    """Install uv into a directory with a pip that is thrown away afterwards."""
    index = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/")
    request = urllib.request.Request(f"{index}/pip/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    wheels = [file for file in files if re.fullmatch(r"pip-[\d.]+-py3-none-any\.whl", file["filename"])]
    newest = max(wheels, key=lambda file: [int(part) for part in file["filename"].split("-")[1].split(".")])
    with urllib.request.urlopen(urllib.parse.urljoin(f"{index}/pip/", newest["url"]), timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != newest["hashes"]["sha256"]:
        raise OSError(f"{newest['url']} does not have the checksum its index states")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / newest["filename"]
        wheel.write_bytes(content)
        run([sys.executable, str(wheel / "pip"), *pip_install("--target", str(HOME))[2:]], environment)


def pip_install(*options):
    """Arguments of Python that install uv; wheels only, because building uv needs Rust."""
    requirement = "uv>={}.{}".format(*OLDEST)
    return [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        *options,
        requirement,
    ]


def run(command, environment):
    """Run a command with its output on stderr: stdout carries the path that this script is asked for."""
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def main():
    """Find or install uv and print where it is."""
    for candidate in (shutil.which("uv"), str(HOME / "bin" / "uv")):
        if candidate and usable(candidate):
            print(candidate)
            return
    print(f"No usable uv on this machine: installing one into {HOME}", file=sys.stderr)
    environment = {name: value for name, value in os.environ.items() if name not in DIVERTING}
    for install in (in_virtual_environment, with_pip_of_the_machine, with_downloaded_pip):
        shutil.rmtree(HOME, ignore_errors=True)
        try:
            install(environment)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{install.__doc__} Did not work: {error}", file=sys.stderr)
            continue
        if usable(str(HOME / "bin" / "uv")):
            print(HOME / "bin" / "uv")
            return
    shutil.rmtree(HOME, ignore_errors=True)
    sys.exit(
        "uv could not be installed, see the messages above. With access to a package index this needs one of: "
        "the module venv with ensurepip (Debian and Ubuntu: apt install python3-venv), pip, or uv itself on the PATH "
        "(https://docs.astral.sh/uv/getting-started/installation)."
    )


if __name__ == "__main__":
    main()
