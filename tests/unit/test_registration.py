# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What is registered with anomalib, within one process; ``test_plugin.py`` tests how it gets there."""

import inspect
import logging

import anomalib.data
import anomalib.models
import pytest
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser

import anomalib_comet
import anomalib_comet.data
import anomalib_comet.models
from anomalib_comet import plugin


def _exported(package: object, base: type) -> set[str]:
    members = {name: getattr(package, name) for name in package.__all__}
    return {name for name, member in members.items() if inspect.isclass(member) and issubclass(member, base)}


def test_nothing_of_ours_is_forgotten() -> None:
    assert _exported(anomalib_comet.models, AnomalibModule) == set(plugin.MODELS)
    assert _exported(anomalib_comet.data, AnomalibDataModule) == set(plugin.DATAMODULES)
    # get_model() and list_models() see direct subclasses only.
    assert set(plugin.MODELS) <= {cls.__name__ for cls in AnomalibModule.__subclasses__()}


def test_registering_again_changes_nothing() -> None:
    plugin.register()
    before = {**vars(anomalib.models)}, {**vars(anomalib.data)}, set(anomalib.models.ALLOWED_MODULES)
    plugin.register("anomalib.data", "anomalib.models")
    assert ({**vars(anomalib.models)}, {**vars(anomalib.data)}, set(anomalib.models.ALLOWED_MODULES)) == before


def test_a_class_of_anomalib_keeps_its_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    theirs = type("DifferNet", (), {})
    monkeypatch.setattr(anomalib.models, "DifferNet", theirs, raising=False)
    with caplog.at_level(logging.WARNING):
        plugin.register("anomalib.models")
    assert anomalib.models.DifferNet is theirs
    assert "anomalib_comet.models.DifferNet" in caplog.text
    assert "CoMetDifferNet" not in caplog.text


def test_unknown_host_is_named_before_anything_is_registered() -> None:
    with pytest.raises(ValueError, match=r"Nothing is registered in 'anomalib\.engine'; choose from 'anomalib\.data'"):
        plugin.register("anomalib.models", "anomalib.engine")


@pytest.mark.parametrize(
    "cls",
    [
        *(getattr(anomalib_comet.models, name) for name in plugin.MODELS),
        *(getattr(anomalib_comet.data, name) for name in plugin.DATAMODULES),
    ],
)
def test_command_line_explains_every_argument(cls: type) -> None:
    def unexplained(of: type) -> list[str]:
        parser = ArgumentParser()
        arguments = parser.add_class_arguments(of, "it", fail_untyped=False)
        explanations = {action.dest: action.help for action in parser._actions}
        return [name for name in arguments if explanations[name] in {None, "", "_EMPTY_HELP_"}]

    class Unexplained:
        def __init__(self, argument: int = 0) -> None: ...

    # jsonargparse has a word of its own for a missing explanation: this fails if it changes.
    assert unexplained(Unexplained) == ["it.argument"]
    assert unexplained(cls) == []


def test_package_resolves_its_parts_at_first_use() -> None:
    assert anomalib_comet.__version__ == "0.1.0"
    assert anomalib_comet.backbones.__name__ == "anomalib_comet.backbones"
    assert {"__version__", "data", "models"} <= set(dir(anomalib_comet))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = anomalib_comet.nothing
