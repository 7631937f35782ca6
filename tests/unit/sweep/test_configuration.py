# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What a sweep's YAML may say, and that everything else gets one clear sentence."""

import json

import pytest

from anomalib_comet.sweep import SweepError, cells_of, read_sweep, sweep_from
from anomalib_comet.sweep.configuration import read_sweep_and_text

SMALL = {"models": {"A": {"class_path": "Padim"}}, "data": {"class_path": "MVTecAD"}}


def test_grid_is_complete_and_nested_draws_share_the_largest_ratio():
    sweep = sweep_from(
        {
            **SMALL,
            "models": {"A": "Padim", "B": {"class_path": "Patchcore", "max_epochs": 1}},
            "categories": ["bottle", "grid"],
            "ratios": [0, 0.1, 0.2],
            "overlap": [False, True],
            "seeds": [0, 1],
            "max_epochs": 7,
        }
    )
    cells = cells_of(sweep)
    assert len(cells) == len({cell.identity for cell in cells}) == 2 * 2 * 3 * 2 * 2
    assert {cell.settings["max_ratio"] for cell in cells} == {0.2}
    assert {(cell.model, cell.settings["max_epochs"]) for cell in cells} == {("A", 7), ("B", 1)}
    assert {cell.settings["data"]["init_args"]["category"] for cell in cells} == {"bottle", "grid"}
    assert [cell.settings["seed"] for cell in cells] == sorted(cell.settings["seed"] for cell in cells)


def test_identity_depends_on_what_changes_the_result_and_on_nothing_else():
    def only(**changes):
        (cell,) = cells_of(sweep_from({**SMALL, "ratios": [0.1], "seeds": [0], **changes}))
        return cell.identity

    same = only()
    assert only(models={"another label": "Padim"}) == same
    assert only(resources={"cpus": 4}, retries=5) == same
    assert only(ratios=[0.1]) == same
    changed = [
        only(ratios=[0.2]),
        only(seeds=[1]),
        only(overlap=True),
        only(max_epochs=21),
        only(trainer={"precision": 16}),
        only(val_split_ratio=0.1),
        only(models={"A": {"class_path": "Padim", "init_args": {"n_features": 3}}}),
        only(data={"class_path": "MVTecAD", "init_args": {"root": "elsewhere"}}),
    ]
    assert len({same, *changed}) == 1 + len(changed)


def test_a_larger_ratio_makes_new_cells_because_it_changes_the_test_set():
    small, large = (
        {cell.identity for cell in cells_of(sweep_from({**SMALL, "ratios": ratios}))}
        for ratios in ([0, 0.1], [0, 0.1, 0.2])
    )
    assert not small & large


def test_values_can_be_replaced_from_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("models: {A: Padim}\ndata: MVTecAD\nratios: [0, 0.1]\n")
    sweep = read_sweep(path, ["data.init_args.root=/data", "seeds=[5]", "models.A.init_args={n_features: 3}"])
    assert sweep.data.init_args == {"root": "/data"}
    assert sweep.seeds == [5]
    assert sweep.models["A"].init_args == {"n_features": 3}


PUBLISHED = """
models: {A: {class_path: Padim, train_batch_size: 4}}
data: {class_path: MVTecAD, init_args: {train_batch_size: 32}}
categories: [bottle, grid]
ratios: [0, 0.1]
published:
  - {model: A, metric: image_auroc, value: 0.9, ratio: 0, source: s}
  - {model: A, metric: recall, value: 0.8, ratio: 0.1, source: s}
  - {model: A, metric: image_auroc, value: 0.7, ratio: 0.1, category: grid, source: s}
"""


def test_a_part_of_a_published_sweep_keeps_only_the_values_that_it_can_measure(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(PUBLISHED)
    assert [entry.value for entry in read_sweep(path).published] == [0.9, 0.8, 0.7]
    assert [entry.value for entry in read_sweep(path, ["ratios=[0.1]"]).published] == [0.8, 0.7]
    # The mean over one category is not the published mean over two.
    assert [entry.value for entry in read_sweep(path, ["categories=[grid]"]).published] == [0.7]
    assert read_sweep(path, ["categories=[bottle]"]).published == []


def test_the_text_of_a_sweep_is_what_ran(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"# a comment{PUBLISHED}")
    assert read_sweep_and_text(path)[1] == path.read_text()
    sweep, text = read_sweep_and_text(path, ["categories=[grid]", "models.A.init_args={n_features: 3}"])
    path.write_text(text)
    assert read_sweep(path) == sweep


def test_a_batch_size_of_one_model_goes_before_that_of_the_data(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(PUBLISHED)
    sizes = {cell.settings["data"]["init_args"]["train_batch_size"] for cell in cells_of(read_sweep(path))}
    assert sizes == {4}


def test_all_categories_are_the_folders_with_training_images(tmp_path):
    for name in ("b/train", "a/train", "c/test"):
        (tmp_path / name).mkdir(parents=True)
    data = {"class_path": "VIADUCT", "init_args": {"root": str(tmp_path)}}
    assert sweep_from({**SMALL, "data": data, "categories": "all"}).categories == ["a", "b"]
    data["init_args"]["root"] = str(tmp_path / "c")
    with pytest.raises(SweepError, match=r"categories: all stands for .* has none: set the root"):
        sweep_from({**SMALL, "data": data, "categories": "all"})


def test_a_change_of_one_model_leaves_the_one_that_shares_its_arguments(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "models:\n  A: {class_path: Padim, init_args: &same {n_features: 3}}\n"
        "  B: {class_path: Patchcore, init_args: *same}\ndata: MVTecAD\n"
    )
    sweep = read_sweep(path, ["models.A.init_args.n_features=5"])
    assert [model.init_args["n_features"] for model in sweep.models.values()] == [5, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {}}, "at least one model"),
        ({"models": {"A": {"init_args": {}}}}, "models.A.class_path is missing"),
        ({"models": {"A": {"class_path": "Padim", "epochs": 3}}}, "models.A.epochs: there is no such key"),
        ({"models": {"A": "Padim", "B": "Padim"}}, "A and B are the same"),
        ({"data": None}, "data: it has to have keys"),
        ({"ratio": 0.1}, "ratio: there is no such key; known are models"),
        ({"ratios": [0, 1.5]}, "ratios: they have to be numbers from 0 to 1"),
        ({"ratios": [0.1, 0.1]}, "ratios: a value occurs twice"),
        ({"seeds": [-1]}, "seeds: they have to be whole numbers"),
        ({"seeds": [2**32]}, "seeds: they have to be whole numbers from 0 to 4294967295"),
        ({"models": {"A": {"class_path": "Padim", "image_size": [0, 64]}}}, "both above 0, got [0, 64]"),
        ({"models": {"A": {"class_path": "Padim", "image_size": [64]}}}, "has to be [height, width]"),
        ({"trainer": {"max_epochs": 3}}, "trainer.max_epochs: a sweep sets it itself: leave it out"),
        ({"trainer": {"default_root_dir": "x"}}, "there is --output"),
        ({"models": {"A": {"class_path": "Padim", "trainer": {"logger": True}}}}, "models.A.trainer.logger: a sweep"),
        ({"overlap": "yes"}, "overlap: it has to be"),
        ({"max_epochs": 0}, "max_epochs: it has to be a whole number of at least 1"),
        ({"val_split_ratio": 1}, "val_split_ratio"),
        ({"resources": {"cpus": 0}}, "resources: cpus has to be above 0"),
        ({"resources": {"gpus": 1.5}}, "above 1 it has to be a whole number"),
        ({"trainer": "cpu"}, "trainer: it has to be arguments by name"),
        ({"trainer": {"devices": 2, "strategy": "ddp"}}, "trainer.devices: a cell trains on one device, so it has to"),
        ({"trainer": {"devices": "auto"}}, "has to be 1, or a list of one such as [0], got auto"),
        ({"trainer": {"devices": [0, 1]}}, "trainer.devices: a cell trains on one device"),
        ({"trainer": {"num_nodes": 2}}, "trainer.num_nodes: a cell trains on one device"),
        (
            {"models": {"A": {"class_path": "Padim", "trainer": {"strategy": "ddp_spawn"}}}},
            "models.A.trainer.strategy: a cell trains on one device, so it has to be auto or single_device",
        ),
        ({"categories": ["a"], "data": {"class_path": "X", "init_args": {"category": "a"}}}, "the same thing twice"),
        (
            {"published": [{"model": "B", "metric": "image_auroc", "value": 0.9, "source": "s", "ratio": 0}]},
            "published[0].model: B is not in this sweep",
        ),
        (
            {"published": [{"model": "A", "metric": "image_auroc", "value": 99.2, "source": "s", "ratio": 0}]},
            "has to be a fraction",
        ),
        (
            {"published": [{"model": "A", "metric": "image_auroc", "value": 0.9, "source": "s"}]},
            "published[0].ratio is missing",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(changes, said):
    with pytest.raises(SweepError) as raised:
        cells_of(sweep_from({**SMALL, **changes}))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


BILLION = "a0: &a0 [1, 1]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(30))


@pytest.mark.parametrize("devices", [1, "1", [1]])
def test_one_device_may_be_named(devices):
    trainer = {"devices": devices, "num_nodes": 1, "strategy": "single_device"}
    assert sweep_from({**SMALL, "trainer": trainer}).trainer == trainer


@pytest.mark.parametrize(
    ("text", "change", "said"),
    [
        ("- a\n", [], "is no sweep"),
        ("a: [\n", [], "is no YAML"),
        (None, [], "cannot be read"),
        ("models: {A: Padim}\ndata: MVTecAD\n", ["seeds"], "KEY=VALUE"),
        ("models: &a {x: *a}\ndata: MVTecAD\n", [], "has a part that contains itself"),
        ("models: {A: {class_path: Padim, init_args: {1: a, b: c}}}\ndata: MVTecAD\n", [], "key that is no text, 1:"),
        ("models: {A: Padim}\ndata: MVTecAD\n", ["models.A.init_args={1: a}"], "--set models.A.* no text, 1:"),
        ("models: {A: Padim}\ndata: MVTecAD\n", ["seeds=&a [*a]"], "--set seeds.* contains itself"),
        (BILLION, [], "more than 100000 values"),
        ("a: " + "[" * 100 + "]" * 100, [], "more than 50 levels deep"),
        ("a: " + "[" * 3000 + "]" * 3000, [], "is no YAML: it is nested too deeply"),
        ("a: 2020-99-99\n", [], "is no YAML"),
        ("models: {A: Padim}\ndata: MVTecAD\n", ["max_epochs=3", "max_epochs.x=3"], "max_epochs has nothing below it"),
    ],
)
def test_files_and_changes_that_are_wrong(tmp_path, text, change, said):
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SweepError, match=said):
        read_sweep(path, change)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": ["bottle", "../../secret"]}, "categories: ../../secret leads out of the data set's folder"),
        ({"categories": "/etc"}, "categories: /etc leads out"),
        ({"data": {"class_path": "X", "init_args": {"category": "a\\..\\..\\b"}}}, "data.init_args.category: a"),
        ({"resample_dir": "../copies"}, "resample_dir: ../copies lies outside the working folder"),
        ({"resample_dir": "C:copies"}, "resample_dir: C:copies lies outside"),
        ({"resample_dir": "~/copies"}, "--set resample_dir=~/copies"),
        (
            {"models": {"A": {"class_path": "FunAd", "init_args": {"feature_store": "/root/.ssh"}}}},
            "--set models.A.init_args.feature_store=/root/.ssh",
        ),
    ],
)
def test_a_file_names_no_place_outside_its_root(tmp_path, changes, said):
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**SMALL, **changes}))  # which is YAML
    with pytest.raises(SweepError) as raised:
        read_sweep(path)
    assert said in str(raised.value)


def test_places_inside_and_those_of_the_command_line_are_taken(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**SMALL, "resample_dir": "results/copies", "categories": ["bottle"]}))
    assert read_sweep(path).resample_dir == "results/copies"
    assert read_sweep(path, ["resample_dir=/data/copies"]).resample_dir == "/data/copies"
    path.write_text(json.dumps({**SMALL, "resample_dir": "/data/copies"}))
    assert read_sweep(path, ["resample_dir=/data/mine"]).resample_dir == "/data/mine"
