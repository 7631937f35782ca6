# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The import hook, tried on a miniature of anomalib: the orders of import that matter, and everything that can fail.

Each case needs an interpreter in which nothing is imported yet. With the real anomalib that takes seconds, with the
miniature a few milliseconds. ``test_plugin.py`` does the rest with the real one.
"""

import subprocess
import sys
from pathlib import Path

import pytest

_SOURCES = Path(__file__).parents[2] / "src"

_HOST = {
    "anomalib/__init__.py": "",
    "anomalib/base.py": "class AnomalibModule: ...",
    "anomalib/data/__init__.py": "complete = True",
    # As in anomalib itself, importing the models imports the data half-way.
    "anomalib/models/__init__.py": "import anomalib.data\nfrom anomalib.base import AnomalibModule\ncomplete = True",
}
_PLUGIN = {
    "anomalib_comet/__init__.py": "",
    "anomalib_comet/backbones.py": "import anomalib.models\ncomplete = True",
    "anomalib_comet/data.py": "from anomalib.data import complete",
    "anomalib_comet/models.py": "from anomalib.models import AnomalibModule, complete\n"
    "from anomalib_comet.backbones import complete\n"
    "class Detector(AnomalibModule): ...",
    "anomalib_comet/plugin.py": "import importlib\n"
    "def register(host):\n"
    "    importlib.import_module(host.replace('anomalib', 'anomalib_comet'))\n"
    "    print('registered', host)",
}


class _Miniature:
    """A directory with the miniature packages, and interpreters that know nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(_HOST | _PLUGIN)

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, code: str, *flags: str, switch: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run code in a new interpreter in which the hook was installed at start-up, as the ``.pth`` file would."""
        prelude = (
            f"import sys; sys.path[:0] = [{str(self.root)!r}, {str(_SOURCES)!r}]; sys.dont_write_bytecode = True\n"
        )
        prelude += "import anomalib_comet_autoload; anomalib_comet_autoload.install()\n"
        prelude += "hooks = lambda: sum(type(f).__name__ == 'AnomalibFinder' for f in sys.meta_path)\n"
        return subprocess.run(
            # -S: without the site-packages of the environment the tests run in, in which the hook is installed.
            [sys.executable, "-S", *flags, "-c", prelude + code],
            env={} if switch is None else {"ANOMALIB_COMET_AUTOLOAD": switch},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )


@pytest.fixture
def miniature(tmp_path: Path) -> _Miniature:
    return _Miniature(tmp_path)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import anomalib; print(hooks())", ["1"]),
        ("import anomalib.data; print(hooks())", ["registered anomalib.data", "1"]),
        (
            "import anomalib.data; print('-'); import anomalib.models; print(hooks())",
            ["registered anomalib.data", "-", "registered anomalib.models", "0"],
        ),
        ("import anomalib.models; print(hooks())", ["registered anomalib.data", "registered anomalib.models", "0"]),
        # Ours first: each of these is itself half imported when anomalib.models is done.
        ("import anomalib_comet.data; print(hooks())", ["registered anomalib.data", "1"]),
        (
            "import anomalib_comet.models; print(hooks())",
            ["registered anomalib.data", "registered anomalib.models", "0"],
        ),
        (
            "import anomalib_comet.backbones; print(hooks())",
            ["registered anomalib.data", "registered anomalib.models", "0"],
        ),
    ],
)
def test_registers_once_what_is_complete_whatever_comes_first(
    miniature: _Miniature, code: str, expected: list[str]
) -> None:
    result = miniature.run(code, "-W", "error")
    assert result.stdout.splitlines() == expected
    assert result.stderr == ""


def test_leaves_no_trace_in_the_module_it_waited_for(miniature: _Miniature) -> None:
    result = miniature.run(
        "import importlib.util\n"
        "assert importlib.util.find_spec('anomalib.models').name == 'anomalib.models'\n"  # looked for, not imported
        "assert hooks() == 1 and 'anomalib.models' not in sys.modules\n"
        "import anomalib.models, anomalib_comet.models\n"
        "for module in (anomalib.models, anomalib_comet.models):\n"
        "    assert type(module.__spec__.loader).__name__ == type(module.__loader__).__name__ == 'SourceFileLoader'\n"
    )
    assert result.stdout.split() == ["registered", "anomalib.data", "registered", "anomalib.models"]


@pytest.mark.parametrize("switch", ["0", "false", "OFF", " no "])
def test_switched_off_it_does_nothing(miniature: _Miniature, switch: str) -> None:
    result = miniature.run("import anomalib.models; print(hooks(), 'anomalib_comet' in sys.modules)", switch=switch)
    assert result.stdout.split() == ["0", "False"]


def test_is_installed_once_and_on_by_default(miniature: _Miniature) -> None:
    assert miniature.run("anomalib_comet_autoload.install(); print(hooks())", switch="1").stdout.split() == ["1"]


_BROKEN = {
    "missing dependency": {"anomalib_comet/backbones.py": "import no_such_package"},
    # The first class exists when the second one fails: anomalib would find it among the subclasses and trip over it.
    "half a plugin": {"anomalib_comet/models.py": _PLUGIN["anomalib_comet/models.py"] + "\nraise RuntimeError('half')"},
    "everything": {"anomalib_comet/plugin.py": "1 / 0"},
}


@pytest.mark.parametrize("broken", _BROKEN.values(), ids=_BROKEN.keys())
@pytest.mark.parametrize("flags", [(), ("-W", "error")], ids=["", "warnings are errors"])
def test_broken_plugin_costs_one_warning(miniature: _Miniature, broken: dict[str, str], flags: tuple[str, ...]) -> None:
    miniature.write(broken)
    result = miniature.run(
        "import anomalib.models\n"
        "assert anomalib.models.complete and anomalib.data.complete\n"
        "print(anomalib.models.AnomalibModule.__subclasses__(), hooks())",
        *flags,
    )
    assert result.stdout.splitlines()[-1] == "[] 0"
    assert result.stderr.count("anomalib_comet could not register") == 1
    assert "Traceback" not in result.stderr


def test_error_of_anomalib_itself_is_passed_on_and_can_be_mended(miniature: _Miniature) -> None:
    miniature.write({"anomalib/models/__init__.py": "import os\nif 'MENDED' not in os.environ: 1 / 0\n"})
    miniature.write({"anomalib_comet/models.py": "import anomalib.models"})
    result = miniature.run(
        "try:\n"
        "    import anomalib.models\n"
        "except ZeroDivisionError:\n"
        "    print('passed on')\n"
        "import os; os.environ['MENDED'] = '1'\n"
        "import anomalib.models\n"
    )
    assert result.stdout.splitlines() == ["passed on", "registered anomalib.models"]
    assert result.stderr == ""
