# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The plugin as a user installs it: from the wheel and editable, switched off, broken, and uninstalled again.

Every kind of installation is a fresh environment that borrows its dependencies from the one the tests run in. Importing
anomalib takes seconds, so an installation gets as few processes as its question allows.
"""

import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_VERSION = "0.1.0"
_HOOK = {"anomalib_comet_autoload.pth", "anomalib_comet_autoload.py", "anomalib_comet_autoload.start"}

# What the scripts below share. They run where the tests do not: in the processes of the installations.
_PRELUDE = """
import json, sys
from pathlib import Path

MODEL = {
    "backbone": "gabor", "image_size": [64, 64], "hidden_units": 16, "coupling_blocks": 2, "n_scales": 1,
    "n_transforms": 1, "n_windows": 2, "local_hidden_units": 16, "local_coupling_blocks": 1,
}
SURFACES = {
    "class_path": "ProceduralSurfaces",
    "init_args": {
        "n_train": 10, "n_test_normal": 4, "n_test_anomalous": 6, "n_val_normal": 2, "n_val_anomalous": 2,
        "image_size": 64, "num_workers": 0, "train_batch_size": 8,
    },
}
CONTAMINATED = {"class_path": "ContaminatedDataModule", "init_args": {"datamodule": SURFACES, "ratio": 0.1}}

def flags(name, arguments):
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    return [part for key, value in text.items() for part in (f"--{name}.{key}", value)]

def finders():
    return [type(finder).__name__ for finder in sys.meta_path]

def cli(*arguments):
    # anomalib's console script consists of this import and this call.
    from anomalib.cli import AnomalibCLI
    return AnomalibCLI([str(argument) for argument in arguments])
"""


def _output(command: list[str], **options: Any) -> str:
    """Standard output of a command that has to succeed; everything it said otherwise."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _build(kind: str, sources: Path, folder: Path) -> Path:
    """Build a ``wheel``, an ``editable`` wheel or an ``sdist`` without any network."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(folder)!r}))"
    return folder / _output([sys.executable, "-c", code], cwd=sources).splitlines()[-1]


class _Environment:
    """A virtual environment in which everything but anomalib_comet can be imported."""

    def __init__(self, root: Path, dependencies: Path) -> None:
        _output([sys.executable, "-m", "virtualenv", "--quiet", "--no-download", "--no-periodic-update", str(root)])
        self.root = root
        self.python = str(root / "bin" / "python")
        self.site_packages = next(root.glob("lib/python*/site-packages"))
        (self.site_packages / "dependencies.pth").write_text(f"{dependencies}\n")

    def pip(self, *arguments: str) -> None:
        _output([self.python, "-m", "pip", "--quiet", "--no-input", *arguments])

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", str(wheel))

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if "__pycache__" not in path.parts}

    def run(self, code: str, **variables: str) -> tuple[Any, str]:
        """Run a script that has to succeed in an interpreter that has imported nothing.

        Returns:
            What the script gave to ``report``, and what it wrote to stderr.
        """
        script, answer = Path("script.py"), Path("answer.json")
        body = textwrap.indent(textwrap.dedent(code), "    ")
        reporting = f"def report(**values):\n    Path({str(answer.resolve())!r}).write_text(json.dumps(values))\n"
        script.write_text(f"{_PRELUDE}\n{reporting}\nif __name__ == '__main__':\n{body}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ANOMALIB_", "PYTHON"))}
        done = subprocess.run(
            [self.python, str(script)],
            env=inherited | variables,
            capture_output=True,
            text=True,
            timeout=550,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(answer.read_text()), done.stderr


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to all that is installed here, without anomalib_comet and without what starts by itself."""
    folder = tmp_path_factory.mktemp("dependencies")
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(installed).iterdir():
            if "anomalib_comet" not in entry.name and entry.suffix not in {".pth", ".start"}:
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", _ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, dependencies: Path, wheel: Path) -> _Environment:
    environment = _Environment(tmp_path_factory.mktemp("installed"), dependencies)
    environment.install(wheel)
    return environment


def test_wheel_holds_the_package_and_the_hook_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = archive.read(f"anomalib_comet-{_VERSION}.dist-info/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {
        "anomalib_comet",
        f"anomalib_comet-{_VERSION}.dist-info",
        *_HOOK,
    }
    assert "anomalib_comet/py.typed" in names
    # Above all no script called `anomalib`: that name is anomalib's.
    assert scripts.split() == ["[console_scripts]", "anomalib-comet", "=", "anomalib_comet.cli:main"]

    sources = _build("sdist", _ROOT, tmp_path)
    _output([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sources)])
    _output([sys.executable, "-m", "tarfile", "-e", str(sources), str(tmp_path)])
    wheel_of_sdist = _build("wheel", tmp_path / f"anomalib_comet-{_VERSION}", tmp_path / "again")
    with zipfile.ZipFile(wheel_of_sdist) as archive:
        assert set(archive.namelist()) == names


def test_command_line_knows_the_short_names(installed: _Environment) -> None:
    answer, errors = installed.run(
        """
        model = ["--model", "CoMetDifferNet", *flags("model", MODEL)]
        data = ["--data", "ContaminatedDataModule", "--data.ratio", "0.1", "--data.datamodule", "ProceduralSurfaces"]
        data += flags("data.datamodule", SURFACES["init_args"])
        cpu = ["--trainer.accelerator", "cpu"]

        assert not {"anomalib", "anomalib_comet", "torch"} & set(sys.modules)
        cli("train", *model, *data, *cpu, "--trainer.max_epochs", "1")
        finders_afterwards = finders()
        checkpoint = ["--ckpt_path", next(Path("results").rglob("model.ckpt"))]
        tested = cli("test", *model, *data, *cpu, *checkpoint)
        cli("validate", *model, *data, *cpu, *checkpoint)
        cli("predict", *model, *data, *cpu, *checkpoint)
        cli("export", *model, *checkpoint, "--export_type", "openvino", "--export_root", "exported")
        cli("fit", *model, *data, *cpu, "--trainer.max_epochs", "1")

        benchmark = {"model": {"class_path": "CoMetDifferNet", "init_args": MODEL}, "data": CONTAMINATED, "seed": 0}
        Path("benchmark.yaml").write_text(json.dumps({"accelerator": "cpu", "benchmark": benchmark}))
        cli("benchmark", "--config", "benchmark.yaml")

        report(
            finders=finders_afterwards,
            model=type(tested.model).__module__,
            metrics=sorted(tested.engine.trainer.callback_metrics),
            checkpoints=len(list(Path("results").rglob("model.ckpt"))),
            exported=[path.suffix for path in sorted(Path("exported").rglob("model.*"))],
            benchmark=[len(path.read_text().splitlines()) for path in Path("runs").rglob("results.csv")],
        )
        """,
        PL_TRAINER_MAX_EPOCHS="1",  # anomalib's benchmark has no option for it
    )
    assert answer == {
        "finders": [name for name in answer["finders"] if name != "AnomalibFinder"],  # it has taken itself off
        "model": "anomalib_comet.models.comet_differnet.lightning_model",
        "metrics": ["image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"],
        "checkpoints": 2,  # of train and of fit
        "exported": [".bin", ".xml"],
        "benchmark": [2],  # a header and one run
    }
    assert "anomalib_comet could not register" not in errors


def test_python_interface_spawned_processes_and_tiled_ensembles_know_the_short_names(installed: _Environment) -> None:
    answer, _ = installed.run(
        """
        # Ours first: importing our package is what imports anomalib, and registration must not fall over that.
        import anomalib_comet.models
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        import anomalib.models
        from anomalib.data import get_datamodule
        from anomalib.models import get_model, list_models
        from anomalib.pipelines.benchmark.job import BenchmarkJob

        names = ["co_met_differ_net", {"class_path": "CoMetDifferNet"}]
        names += [{"class_path": "anomalib.models.CoMetDifferNet"}]
        names += [{"class_path": "anomalib_comet.models.CoMetDifferNet"}]
        classes = {type(get_model(name, **MODEL)) for name in names}
        assert classes == {anomalib.models.CoMetDifferNet} == {anomalib_comet.models.CoMetDifferNet}
        datamodules = [type(get_datamodule(config)).__name__ for config in (CONTAMINATED, SURFACES)]

        # A job travels to the processes of the pipelines as a pickle; there, names are looked up anew.
        job = BenchmarkJob("cpu", get_model("co_met_differ_net", **MODEL), get_datamodule(CONTAMINATED), 0, {})
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            unpickled = pool.submit(BenchmarkJob.__getattribute__, job, "model").result()
            in_child = pool.submit(list_models).result()

        # anomalib's tiled ensemble fails on any model configuration with init_args: small defaults instead.
        import inspect
        from anomalib.pipelines.tiled_ensemble import EvalTiledEnsemble, TrainTiledEnsemble
        from jsonargparse import Namespace
        init = anomalib.models.DifferNet.__init__
        parameters = list(inspect.signature(init).parameters.values())[1:]
        init.__defaults__ = tuple(MODEL.get(parameter.name, parameter.default) for parameter in parameters)
        splits = {"val_split_mode": "inner", "test_split_mode": "inner"}
        Path("ensemble.yaml").write_text(json.dumps({
            "seed": 0, "accelerator": "cpu", "default_root_dir": "ensemble",
            "tiling": {"image_size": [128, 64], "tile_size": [64, 64], "stride": 64},
            "normalization_stage": "image", "thresholding_stage": "image", "SeamSmoothing": {"apply": False},
            "data": {**CONTAMINATED, "init_args": {**CONTAMINATED["init_args"], **splits}},
            "TrainModels": {"model": {"class_path": "CoMetDifferNet"}, "trainer": {"max_epochs": 1}},
        }))
        TrainTiledEnsemble().run(Namespace(config="ensemble.yaml"))
        EvalTiledEnsemble(next(Path("ensemble").rglob("v0"))).run(Namespace(config="ensemble.yaml"))
        ensemble = next(Path("ensemble").rglob("v0"))

        report(
            listed=sorted(name for name in list_models() if "differ" in name),
            datamodules=datamodules,
            child=[type(unpickled).__name__, "co_met_differ_net" in in_child],
            tiles=sorted(path.name for path in ensemble.rglob("*.ckpt")),
            errors=Path("runs/pipeline.log").read_text().count("Error"),
            metrics=len(list(ensemble.rglob("*metric*.csv"))),
        )
        """
    )
    assert answer == {
        "listed": ["co_met_differ_net", "differ_net"],
        "datamodules": ["ContaminatedDataModule", "ProceduralSurfaces"],
        "child": ["CoMetDifferNet", True],
        "tiles": ["model0_0.ckpt", "model1_0.ckpt"],
        "errors": 0,
        "metrics": 1,
    }


def test_switched_off_full_paths_and_the_console_script_still_work(installed: _Environment) -> None:
    answer, _ = installed.run(
        """
        import contextlib, io
        from anomalib.models import list_models
        without = sorted(name for name in list_models() if "differ" in name)
        small = flags("model", MODEL)
        surfaces = ["--data.datamodule", "anomalib_comet.data.ProceduralSurfaces"]
        from anomalib.cli import AnomalibCLI
        data = ["--data", "anomalib_comet.data.ContaminatedDataModule", *surfaces]
        full = AnomalibCLI(["train", "--model", "anomalib_comet.models.CoMetDifferNet", *small, *data], run=False)
        short = hasattr(sys.modules["anomalib.models"], "CoMetDifferNet")

        from anomalib_comet.cli import main
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main(["train", "--model", "CoMetDifferNet", *small, "--print_config"])
        report(
            without=without, full=[type(full.model).__name__, type(full.datamodule).__name__], short=short,
            console="class_path: anomalib_comet.models.CoMetDifferNet" in text.getvalue(),
        )
        """,
        ANOMALIB_COMET_AUTOLOAD="0",
    )
    assert answer == {
        "without": [],
        "full": ["CoMetDifferNet", "ContaminatedDataModule"],
        "short": False,
        "console": True,
    }


def test_console_script_is_installed_and_says_what_it_is(installed: _Environment) -> None:
    script = _output([str(installed.root / "bin" / "anomalib-comet"), "--version"])
    module = _output([installed.python, "-m", "anomalib_comet", "--version"])
    assert script == module
    assert script.splitlines()[0] == f"anomalib-comet {_VERSION}"
    assert script.splitlines()[1].startswith("anomalib 2.")


def test_starting_python_imports_nothing_of_ours_but_the_hook(installed: _Environment) -> None:
    code = "import sys; print([name for name in sys.modules if name.startswith('anomalib')], len(sys.modules))"
    switched_off = os.environ | {"ANOMALIB_COMET_AUTOLOAD": "0"}
    for flags in ([], ["-I"], ["-s", "-E"]):
        on = _output([installed.python, *flags, "-c", code])
        assert on.startswith("['anomalib_comet_autoload'] ")
        # The hook itself is imported in both cases: switched on, it imports nothing more.
        assert on == _output([installed.python, *flags, "-c", code], env=switched_off)


def test_broken_plugin_costs_one_warning_and_uninstalling_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, dependencies: Path, wheel: Path
) -> None:
    environment = _Environment(tmp_path_factory.mktemp("broken"), dependencies)
    before = environment.files()
    environment.install(wheel)
    # The worst kind: DifferNet has been defined by then and stays visible to anomalib unless it is forgotten again.
    broken = environment.site_packages / "anomalib_comet" / "models" / "comet_differnet" / "lightning_model.py"
    broken.write_text("raise RuntimeError('something is wrong here')\n")

    answer, errors = environment.run(
        """
        from anomalib.cli import AnomalibCLI
        from anomalib.models import list_models
        padim = ["--model", "Padim", "--model.pre_trained", "false"]
        parsed = AnomalibCLI(["train", *padim, "--data", "MVTecAD"], run=False)
        report(
            model=type(parsed.model).__name__,
            listed=[name for name in list_models() if "differ" in name],
            data=hasattr(sys.modules["anomalib.data"], "ContaminatedDataModule"),
            finders=finders(),
        )
        """
    )
    # What is not broken is registered.
    assert answer == {
        "model": "Padim",
        "listed": [],
        "data": True,
        "finders": [name for name in answer["finders"] if name != "AnomalibFinder"],
    }
    assert errors.count("anomalib_comet could not register") == 1
    assert "RuntimeError: something is wrong here" in errors

    environment.pip("uninstall", "--yes", "anomalib-comet")
    assert environment.files() - before == set()
    assert _output([environment.python, "-c", "import sys; print(len(sys.meta_path))"]) == _output(
        [environment.python, "-I", "-c", "import sys; print(len(sys.meta_path))"]
    )


def test_editable_installation_has_the_hook_too(tmp_path_factory: pytest.TempPathFactory, dependencies: Path) -> None:
    environment = _Environment(tmp_path_factory.mktemp("editable"), dependencies)
    environment.install(_build("editable", _ROOT, tmp_path_factory.mktemp("editable_wheel")))
    assert {path.name for path in environment.site_packages.iterdir()} >= _HOOK
    answer, errors = environment.run(
        """
        from anomalib.models import CoMetDifferNet
        import anomalib.data, inspect
        report(file=inspect.getfile(CoMetDifferNet), data=inspect.getfile(anomalib.data.ProceduralSurfaces))
        """
    )
    package = _ROOT / "src" / "anomalib_comet"
    assert {Path(file).is_relative_to(package) for file in answer.values()} == {True}
    assert "anomalib_comet could not register" not in errors
