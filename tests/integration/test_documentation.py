# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Every code block and command of README, pages and model cards is executed, on small data and in this process.

What cannot be (hours, other data, another machine) is at least parsed by the program that it calls, and stands in
``PARSED`` or ``NOT_RUN`` with the reason. A command that no rule covers fails.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.data import AnomalibDataModule

import anomalib_comet.data
from anomalib_comet import cli, demo, plugin
from anomalib_comet.data import ProceduralSurfaces
from anomalib_comet.sweep.command import parser as sweep_parser
from helpers.documents import PAGES, ROOT, blocks, commands, printed_as_promised
from helpers.miniatures import mvtecad, write_image, write_mask

TILES = ("blowhole", "break", "crack", "fray", "hole", "uneven")
SMALL_IMAGES = {
    "n_train": 12,
    "n_test_normal": 4,
    "n_test_anomalous": 32,
    "n_val_normal": 2,
    "n_val_anomalous": 2,
    "image_size": 64,
    "num_workers": 0,
}
SMALL_FLOW = {
    "image_size": [64, 64],
    "n_scales": 1,
    "coupling_blocks": 1,
    "hidden_units": 8,
    "n_windows": 2,
    "local_coupling_blocks": 1,
    "local_hidden_units": 8,
}
SMALL_NETWORK = {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"]}
SMALL_PADIM = {**SMALL_NETWORK, "n_features": 20}


def options(prefix, values):
    """Values as options of the command line."""
    return [f"--{prefix}.{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in values.items()]


ONE_EPOCH = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu"]
SURFACES = options("data", SMALL_IMAGES)
HIDDEN_SURFACES = options("data.datamodule", SMALL_IMAGES)

# Commands that run, by how they begin, and the options that make them small.
RUN = {
    "anomalib train --model CoMetDifferNet --model.backbone mobilenetv2_100": [
        *options("model", {"pre_trained": False, **SMALL_FLOW}),
        *ONE_EPOCH,
    ],
    "anomalib train --model CoMetDifferNet --model.backbone gabor": [
        *options("model", SMALL_FLOW),
        *HIDDEN_SURFACES,
        *ONE_EPOCH,
    ],
    "anomalib train --model Padim --data ContaminatedDataModule": [
        *options("model", SMALL_PADIM),
        *ONE_EPOCH,
    ],
    "anomalib train --model Patchcore --data ProceduralSurfaces": [
        *options("model", {**SMALL_NETWORK, "coreset_sampling_ratio": 0.001}),
        *SURFACES,
        *ONE_EPOCH,
    ],
    "anomalib train --config configs/comet_differnet_magnetic_tiles.yaml --model.init_args.backbone_weights": [
        *options("model.init_args", SMALL_FLOW),
        *ONE_EPOCH,
    ],
    "anomalib test --config results/CoMetDifferNet/tiles/v0/config.yaml": ["--trainer.accelerator=cpu"],
    "anomalib export": options("model", SMALL_FLOW),  # of the model that is thrown away for the checkpoint's
}

# Commands that anomalib's own parser has to accept, and why they do not run.
PARSED = {
    r"anomalib train --config configs/\w+\.yaml": "test_configs.py trains by every file in configs/",
    r"anomalib train --model CoMet(Fastflow|Stfpm|Supersimplenet) ": "test_comet_any_detector.py trains these",
    r"anomalib train --model CoMet\w+ --data (KolektorSDD2|VIADUCT) ": "test_published_sets.py reads their miniatures",
    r"anomalib train --model my_detector\.CoMetAutoencoder": "test_bring_your_own_detector.py runs the page",
}

# Commands that would change this machine or need another one.
NOT_RUN = {
    r"python3? -m pip (install|wheel) ": "asks a package index",
    r"pip install ": "asks a package index",
    r"python -m venv environment|environment/bin/": "installs the package a second time; test_plugin.py does that",
    r"uv sync --locked": "makes the environment that this test runs in",
}

# What a page takes as given.
GIVEN = {
    "CONTRIBUTING.md": """
from anomalib.models.components import AnomalibModule
from anomalib_comet.confident_meta_learning import ConfidentMetaLearning
from anomalib_comet.models import DifferNet as MyDetector
""",
    "docs/audit.md": f"""
from pathlib import Path
from anomalib.models import Padim
from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces

model = Padim(**{SMALL_PADIM!r})
datamodule = ContaminatedDataModule(ProceduralSurfaces(**{SMALL_IMAGES!r}))
image_paths = sorted(Path("datasets/tiles/unsorted").glob("*.png"))
scores = range(len(image_paths))
""",
}

# Numbers that make the code of pages small; everything else in it runs as it stands.
SMALLER = {
    r"max_epochs=\d+": "max_epochs=1",
    r"pretrained=True": "pretrained=False",
    r'"backbone": "gabor"': '"backbone": "gabor", "hidden_units": 8',
    r'backbone="gabor"\)': 'backbone="gabor", hidden_units=8)',
}


@pytest.fixture(scope="module")
def images_read_here():
    """Pages leave ``num_workers`` at anomalib's 8: as many forks of a process that all tests share, again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnomalibDataModule, "num_workers", property(lambda _: 0, lambda *_: None), raising=False)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, images_read_here):
    """A checkout with the data, checkpoints and files that the pages speak of."""
    plugin.register()
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("benchmarks", "configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for root in (folder / "datasets" / "tiles", folder / "datasets" / "mtd"):
        for part in ("train/good", "test/good", *(f"test/{kind}" for kind in TILES)):
            for k in range(12 if part == "train/good" else 5):
                write_image(root / part / f"{k:03}.png", defect=part.endswith(TILES))
        for kind in TILES:
            for k in range(5):
                write_mask(root / "ground_truth" / kind / f"{k:03}_mask.png")
    shutil.copytree(folder / "datasets/tiles/train/good", folder / "datasets/tiles/unsorted")
    mvtecad(folder / "datasets/MVTecAD")
    shutil.copytree(folder / "datasets/MVTecAD/bottle", folder / "datasets/MVTecAD/hazelnut")
    write_image(folder / "part.png", defect=True)
    for number in (1, 2):
        write_image(folder / "wrong" / str(number) / "part 1.png", defect=True)
    (folder / "audit_delete.txt").write_text("wrong/1/part 1.png\nwrong/2/part 1.png\n")
    for name in ("resnet18", "wide_resnet50_2"):
        (folder / f"{name}.pth").touch()  # of commands that are only parsed
    here = Path.cwd()
    os.chdir(folder)
    try:
        tiles = ["--data", "Folder", *options("data", {"name": "tiles", "root": "datasets/tiles", "num_workers": 0})]
        tiles += options("data", {"normal_dir": "train/good", "normal_test_dir": "test/good"})
        tiles += ["--data.abnormal_dir=test/crack", *ONE_EPOCH]
        comet = options("model", {"backbone": "gabor", "train_rotations": "quarter", **SMALL_FLOW})
        AnomalibCLI(["train", "--model", "CoMetDifferNet", *comet, *tiles])
        padim = options("model", SMALL_PADIM)
        AnomalibCLI(["train", "--model", "Padim", *padim, *tiles])
    finally:
        os.chdir(here)
    for model, name in (("CoMetDifferNet", "model"), ("Padim", "padim")):
        checkpoint = folder / "results" / model / "tiles" / "v0" / "weights" / "lightning" / "model.ckpt"
        shutil.copyfile(checkpoint, folder / f"{name}.ckpt")
    return folder


@pytest.fixture(scope="module")
def parser():
    """anomalib's parser of commands, which takes a second to build."""

    class Parser(AnomalibCLI):
        def __init__(self):
            self.parser = self.init_parser()
            self.subcommand_parsers, self.subcommand_method_arguments = {}, {}
            self.add_subcommands()

    return Parser().parser


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_the_page_run(page, workspace, parser, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(workspace)
    name = str(page.relative_to(ROOT))
    namespace = {"__name__": "page"}
    exec(GIVEN.get(name, ""), namespace)  # noqa: S102
    block = None
    try:
        for block in blocks(page):
            run_block(block, namespace, parser, monkeypatch, capsys)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, the line of the page belongs to it
        pytest.fail(f"{block}: {type(error).__name__}: {error}")


def run_block(block, namespace, parser, monkeypatch, capsys):
    if block.language == "python":
        run_python(block, namespace, capsys)
    elif block.language == "yaml":
        run_yaml(block)
    elif block.text.startswith("mkdir -p rejected && xargs"):
        subprocess.run(["bash", "-euc", block.text], check=True)
        assert sorted(path.name for path in Path("rejected").iterdir()) == ["part 1.png", "part 1.png.~1~"]
    elif block.language == "bash":
        for command in commands(block.text):
            run_command(command, parser, monkeypatch)
    else:  # a picture in letters, or what Sphinx executes
        assert block.language in {"text", "{toctree}", "{eval-rst}"}, "a block in a language that nothing runs"


def run_python(block, namespace, capsys):
    text = block.text
    for pattern, small in SMALLER.items():
        text = re.sub(pattern, small, text)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, str(block), "exec"), namespace)  # noqa: S102
    if block.file:
        Path(block.file).write_text(block.text)
    promised = printed_as_promised(block.text)
    if promised:
        assert capsys.readouterr().out.splitlines() == promised


def run_yaml(block):
    """Build what a configuration describes; a sweep's is written down for the commands behind it."""
    content = yaml.safe_load(block.text)
    if "models" in content:
        Path("sweep.yaml").write_text(block.text)
        return
    assert content.keys() <= {"model", "data", "trainer"}
    Path("page.yaml").write_text(block.text)
    arguments = ["fit", "--config", "page.yaml"]
    if "model" in content:
        arguments += options("model.init_args", {"backbone": "gabor", **SMALL_FLOW})
    else:
        arguments += ["--model", "Padim", *options("model", SMALL_PADIM)]
    if "ProceduralSurfaces" in block.text:
        arguments += options("data.init_args.datamodule.init_args", SMALL_IMAGES)
    elif "data" not in content:
        arguments += ["--data", "ProceduralSurfaces", *SURFACES]
    built = AnomalibCLI(arguments, run=False)
    built.datamodule.setup()
    assert len(built.datamodule.train_data)
    asked = [callback["class_path"] for callback in content.get("trainer", {}).get("callbacks", [])]
    parsed = built.config["fit"]["trainer"]["callbacks"] or []
    assert [callback["class_path"] for callback in parsed] == asked


def run_command(words, parser, monkeypatch):
    command = " ".join(words)
    small = next((extra for start, extra in RUN.items() if command.startswith(start)), None)
    if small is not None:
        AnomalibCLI([*words[1:], *small])
    elif any(re.match(pattern, command) for pattern in PARSED):
        if command not in UNDERSTOOD:
            parser.parse_args(words[1:])
            UNDERSTOOD.add(command)
    elif words[:2] == ["anomalib-comet", "audit"]:
        assert exit_status(words[1:]) == 0
    elif words[:2] == ["anomalib-comet", "sweep"]:
        check_sweep(words[2:])
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        run_benchmark(words[1:], monkeypatch)
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", "-C", str(ROOT), *words[1:]], check=True, capture_output=True)
    elif words[:2] == ["uv", "run"]:
        check_tool(words[2:])
    elif words[0] == "export":
        assert words == ["export", "HF_HUB_OFFLINE=1"]
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    else:
        assert any(re.match(pattern, command) for pattern in NOT_RUN), f"nothing executes or checks `{command}`"


def check_sweep(words):
    """Check data and settings; test_sweep.py trains by such files, test_sweep_on_ray.py on a cluster."""
    sweep_parser().parse_args(words)
    assert words[0] == "--config"
    if words[1].startswith(("configs/sweeps/comet_", "configs/sweeps/fun_ad_")):
        return  # data that is not here; test_reproduction.py runs each of these on miniatures
    small = [f"--set=data.init_args.{name}={v}" for name, v in SMALL_IMAGES.items() if "surfaces" in words[1]]
    assert exit_status(["sweep", *words[:2], "--in_process", "--dry_run", *small]) == 0


UNDERSTOOD = set()


def exit_status(arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


class Parsed(Exception):  # noqa: N818
    """A benchmark has understood its arguments."""


def run_benchmark(words, monkeypatch):
    """Print the table of a CSV; of everything else, which takes hours, let the script read its arguments."""
    understood = argparse.ArgumentParser.parse_args

    def stop(self, *args, **kwargs):
        arguments = understood(self, *args, **kwargs)
        if not getattr(arguments, "print", False):
            raise Parsed
        return arguments

    names = ("anomalib", "anomalib_comet", "lightning.fabric", "lightning.pytorch")
    loud = {name: logging.getLogger(name).level for name in names}
    with monkeypatch.context() as patch, contextlib.ExitStack() as quiet:
        for name, level in loud.items():  # scripts are processes of their own, and may be quiet
            quiet.callback(logging.getLogger(name).setLevel, level)
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(ROOT / "benchmarks")
        if "--print" in words:
            assert Path(words[words.index("--csv") + 1]).exists()
            runpy.run_path(words[0], run_name="__main__")
        else:
            with pytest.raises(Parsed):
                runpy.run_path(words[0], run_name="__main__")


def check_tool(words):
    """A tool of the environment exists; its own tests or the continuous integration run it."""
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
    else:
        assert (Path(sys.executable).parent / words[0]).exists()


def test_the_demo_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SMALL", {**demo.SMALL, **SMALL_FLOW})
    monkeypatch.setattr(anomalib_comet.data, "ProceduralSurfaces", partial(ProceduralSurfaces, **SMALL_IMAGES))
    assert demo.main(["--epochs", "1"]) == 0
    assert "hidden anomalies found" in capsys.readouterr().out


NAMED = re.compile(r"(?<![\w/.-])((?:benchmarks|configs|docs|src|tests)/[\w./*-]*[\w*])")


def test_files_that_pages_and_configurations_name_exist():
    files = [*PAGES, *(ROOT / "configs").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.py")]
    missing = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in NAMED.findall(file.read_text(encoding="utf-8"))
        if not any(ROOT.glob(name))
    }
    assert not missing
