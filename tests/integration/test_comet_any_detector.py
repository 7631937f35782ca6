# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Three detectors of anomalib's own under CoMet: their training stays theirs, and every invariant holds for them."""

import contextlib
import inspect
import warnings
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pandas as pd
import pytest
import timm
import torch
from anomalib.cli import AnomalibCLI
from anomalib.deploy import ExportType
from anomalib.models import Fastflow, Stfpm, Supersimplenet
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from anomalib_comet import plugin
from anomalib_comet.backbones import timm_name_without_download
from anomalib_comet.confident_meta_learning.meta import take
from anomalib_comet.models import CoMetFastflow, CoMetStfpm, CoMetSupersimplenet
from anomalib_comet.models.frozen_features import resizing_pre_processor
from helpers.tiny import engine, surfaces

OFF = {"use_weights": False, "use_meta": False, "use_adaptive_l2": False}
PLAIN = {"use_meta": False, "use_adaptive_l2": False}
DETECTORS = {
    "fastflow": (CoMetFastflow, Fastflow, {"backbone": "resnet18", "flow_steps": 2}),
    "stfpm": (CoMetStfpm, Stfpm, {"backbone": "resnet18", "layers": ["layer1", "layer2"]}),
    "supersimplenet": (CoMetSupersimplenet, Supersimplenet, {"backbone": "resnet18", "layers": ["layer1"]}),
}
every_detector = pytest.mark.parametrize("name", DETECTORS)


def build(name, **kwargs):
    """One of ours, its initial weights from seed 0."""
    cls, _, settings = DETECTORS[name]
    torch.manual_seed(0)
    arguments = {"pre_trained": False, "pre_processor": resizing_pre_processor((64, 64)), **settings}
    return cls(**{**arguments, **kwargs})


def build_base(name):
    """Anomalib's own, its initial weights from seed 0."""
    _, cls, settings = DETECTORS[name]
    offline = {"pre_trained": False} if name == "fastflow" else {}
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        if not offline:
            settings = {**settings, "backbone": stack.enter_context(timm_name_without_download("resnet18"))}
        return cls(**settings, **offline, pre_processor=resizing_pre_processor((64, 64)))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


def train(model, datamodule, root, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    trained_by = engine(root, **{"max_epochs": 2, **kwargs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained_by.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    return trained_by


def identical(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def state(model):
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def batch_of(n=6):
    generator = torch.Generator().manual_seed(1)
    return SimpleNamespace(
        image=torch.randn(n, 3, 64, 64, generator=generator),
        image_path=[f"{k}.png" for k in range(n)],
        gt_label=torch.zeros(n, dtype=torch.bool),
        gt_mask=torch.zeros(n, 64, 64, dtype=torch.bool),
    )


def stepping(model):
    """Let a model do training steps without a trainer, and note what it logs."""
    logged = {}
    model.log = lambda *_args, **_kwargs: None
    model._log_number = lambda name, value: logged.__setitem__(name, float(value))
    model.train()
    return logged


def configured(model):
    """Optimizer and schedules."""
    model._trainer = SimpleNamespace(max_epochs=10)
    found = model.configure_optimizers()
    return (found[0][0], found[1]) if isinstance(found, tuple | list) else (found, [])


def gradients(model):
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@every_detector
def test_switches_off_is_the_base_detector_bit_for_bit(name, data_root, tmp_path):
    base, off, on = build_base(name), build(name, **OFF), build(name)
    assert identical(state(base), state(off))
    for model in (base, off, on):
        train(model, surfaces(data_root), tmp_path)
    assert identical(state(base), state(off))
    assert not identical(state(base), state(on))


@every_detector
def test_defaults_are_the_base_detectors(name):
    ours, base, _ = DETECTORS[name]
    signatures = [inspect.signature(cls.__init__).parameters for cls in (ours, base)]
    for argument in signatures[0].keys() & signatures[1].keys() - {"self"}:
        assert signatures[0][argument].default == signatures[1][argument].default, argument
    model, reference = build(name), build_base(name)
    assert model.trainer_arguments == reference.trainer_arguments
    assert str(ours.configure_pre_processor()) == str(base.configure_pre_processor())
    (mine, my_schedules), (theirs, their_schedules) = configured(model), configured(reference)
    assert str(mine) == str(theirs)
    assert type(mine) is type(theirs)
    assert [each.state_dict() for each in my_schedules] == [each.state_dict() for each in their_schedules]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [*((name, {}) for name in DETECTORS), ("supersimplenet", {"adapt_cls_features": True})],
)
def test_mean_of_the_sample_losses_is_the_detectors_own_loss(name, kwargs):
    model, batch = build(name, **kwargs), batch_of()
    stepping(model)
    _, base, _ = DETECTORS[name]
    torch.manual_seed(2)
    own = base.training_step(model, batch)["loss"]
    own.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(2)
    losses = model.sample_losses(model.training_inputs(batch))
    losses.mean().backward()
    assert losses.shape == (6,)
    assert losses.std() > 0
    assert losses.mean().item() == pytest.approx(own.item(), rel=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(value, found[key], rtol=1e-3, atol=1e-5 * max(1.0, float(value.abs().max()))), key


def test_fastflow_on_a_transformer_has_its_features_once_a_step():
    model = build(
        "fastflow",
        backbone="deit_base_distilled_patch16_384",
        pre_processor=resizing_pre_processor((384, 384)),
        flow_steps=1,
    )
    batch = SimpleNamespace(image=torch.randn(2, 3, 384, 384), image_path=["a", "b"])
    stepping(model)
    with torch.no_grad():
        own = Fastflow.training_step(model, batch)["loss"]
        blocks = []
        model.model.feature_extractor.blocks[0].register_forward_hook(lambda *_: blocks.append(1))
        inputs = model.training_inputs(batch)
        losses = model.sample_losses(inputs)
        model.sample_losses(inputs)
    assert len(blocks) == 1
    assert losses.mean().item() == pytest.approx(own.item(), rel=1e-5)


@every_detector
def test_a_samples_loss_does_not_depend_on_the_part_of_the_batch_it_is_judged_in(name):
    model, batch = build(name), batch_of()
    stepping(model)
    inputs = model.training_inputs(batch)
    for module in model.modules():  # which does couple samples, as in the detector's own training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        whole = model.sample_losses(inputs)
        parts = [model.sample_losses(take(inputs, rows)) for rows in (slice(0, 4), slice(4, 6))]
        again = model.sample_losses(inputs)
    assert torch.equal(whole, again)  # one draw of noise a step
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-4)


@every_detector
def test_weights_act_on_the_loss_of_their_image(name):
    model, batch = build(name, **PLAIN), batch_of()
    stepping(model)
    found = []
    for weights in ([1.0] * 6, [0.5] * 6, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]):
        model.zero_grad()
        model.confidence.weights = dict(zip(batch.image_path, weights, strict=True))
        torch.manual_seed(2)
        model.training_step(batch, 0)["loss"].backward()
        found.append(gradients(model))
    for key, value in found[0].items():
        tolerance = 1e-5 * max(1.0, float(value.abs().max()))
        assert torch.allclose(found[1][key], 0.5 * value, rtol=1e-3, atol=tolerance), key
    # A single image with weight 1 of six: a sixth of its loss.
    model.zero_grad()
    torch.manual_seed(2)
    (model.sample_losses(model.training_inputs(batch))[0] / 6).backward()
    for key, value in gradients(model).items():
        tolerance = 1e-5 * max(1.0, float(value.abs().max()))
        assert torch.allclose(found[2][key], value, rtol=1e-3, atol=tolerance), key


@every_detector
def test_meta_steps_lower_the_loss_and_inner_steps_help(name):
    model, batch = build(name), batch_of(8)
    logged = stepping(model)
    optimizer, _ = configured(model)
    network = model.model.teacher_model if name == "stfpm" else model.model.feature_extractor
    frozen = {key: value.clone() for key, value in network.state_dict().items()}
    convolutions = []
    next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(
        lambda *_: convolutions.append(1)
    )
    losses, improvements = [], []
    for _ in range(8):
        torch.manual_seed(3)
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        improvements.append(logged["inner_improvement"])
    assert losses[-1] < losses[0]
    assert np.mean(improvements) > 0
    assert len(convolutions) == 8  # the frozen part runs once a step
    assert identical(frozen, network.state_dict())


@every_detector
def test_scrambled_training_labels_change_nothing(name, data_root, tmp_path):
    trained = []
    for scrambled in (False, True):
        datamodule = surfaces(data_root)
        generator = torch.Generator().manual_seed(1)

        def train_dataloader(datamodule=datamodule, generator=generator, scrambled=scrambled):
            def collate(items):
                batch = datamodule.train_data.collate_fn(items)
                if scrambled:
                    batch.gt_label = torch.randint(2, batch.gt_label.shape, generator=generator).bool()
                    batch.gt_mask = torch.randint(2, batch.gt_mask.shape, generator=generator).bool()
                return batch

            return DataLoader(datamodule.train_data, batch_size=8, shuffle=True, collate_fn=collate)

        datamodule.train_dataloader = train_dataloader
        model = build(name, warmup_epochs=1, kappa=0.0)
        train(model, datamodule, tmp_path)
        trained.append((state(model), model.confidence.weights))
    assert identical(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]


class StepSeed(Callback):
    """The noise of SuperSimpleNet comes from the global generator, which no checkpoint of anomalib's holds."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(trainer.global_step)


@pytest.fixture(scope="module", params=DETECTORS)
def run(request, data_root, tmp_path_factory):
    """A finished training: name, model, engine and folder of the run."""
    model = build(request.param, warmup_epochs=1, kappa=0.0)
    root = tmp_path_factory.mktemp(request.param)
    trained_by = train(model, ordered(data_root), root, max_epochs=3, callbacks=[StepSeed()])
    return request.param, model.eval(), trained_by


def ordered(data_root):
    """The order of images must be the same in all runs for a comparison to mean anything."""
    datamodule = surfaces(data_root)
    datamodule.train_dataloader = lambda: DataLoader(
        datamodule.train_data, batch_size=8, shuffle=False, collate_fn=datamodule.train_data.collate_fn
    )
    return datamodule


def test_the_list_of_training_images_is_written(run):
    _, model, trained_by = run
    table = pd.read_csv(f"{trained_by.trainer.default_root_dir}/confidence_weights.csv")
    assert len(table) == 20
    assert (table.anomaly_score >= 0).all()
    assert table.anomaly_score.nunique() > 15
    assert table.confidence_weight.between(0, 1).all()
    assert 0 < min(model.confidence.weights.values()) < 1


def test_resumed_training_equals_uninterrupted(run, data_root, tmp_path):
    name, whole, _ = run
    first, second = (build(name, warmup_epochs=1, kappa=0.0) for _ in range(2))
    # Stopped after two of three epochs, not trained for two: SuperSimpleNet's schedule follows max_epochs.
    half = train(first, ordered(data_root), tmp_path, max_epochs=3, max_steps=6, callbacks=[StepSeed()])
    train(second, ordered(data_root), tmp_path, half.best_model_path, max_epochs=3, callbacks=[StepSeed()])
    assert not identical(state(first), state(second))
    assert identical(state(whole), state(second))
    assert second.confidence.weights == whole.confidence.weights


def test_checkpoint_is_restored_without_network_or_file(run, tmp_path):
    name, model, trained_by = run
    content = torch.load(trained_by.best_model_path, weights_only=False)
    content["hyper_parameters"]["pre_trained"] = True  # what a user would have trained with, and cannot download here
    content["hyper_parameters"]["backbone_weights"] = "file of the training machine.pth"
    torch.save(content, tmp_path / "moved.ckpt")
    # FastFlow's layers have the size of its images, and no checkpoint of anomalib's gives that to the constructor.
    size = {"pre_processor": resizing_pre_processor((64, 64))} if name == "fastflow" else {}
    restored = DETECTORS[name][0].load_from_checkpoint(tmp_path / "moved.ckpt", **size).eval()
    images = torch.rand(3, 3, 72, 72)
    with torch.no_grad():
        expected, found = model(images), restored(images)
    for field in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
        assert torch.equal(getattr(expected, field), getattr(found, field)), field
    assert restored.confidence.frame().equals(model.confidence.frame())
    assert restored.hparams.backbone == "resnet18"


def test_exports_agree_with_the_evaluation_forward_pass(run, tmp_path):
    _, model, trained_by = run
    images = torch.rand(3, 3, 64, 64)  # of the size of the Resize, whose antialiasing is lost in an export
    with torch.no_grad():
        expected = model(images)
    for kind in (ExportType.ONNX, ExportType.OPENVINO):
        path = trained_by.export(model, kind, export_root=tmp_path)
        compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = {next(iter(port.get_names())): value for port, value in compiled([images.numpy()]).items()}
        for field in ("pred_score", "anomaly_map"):
            difference = np.abs(found[field].ravel() - getattr(expected, field).numpy().ravel()).max()
            assert difference <= 1e-3, (kind, field)


@every_detector
def test_backbone_weights_come_from_a_local_file(name, tmp_path):
    torch.manual_seed(5)
    reference = timm.create_model("resnet18", num_classes=0).state_dict()
    torch.save(reference, tmp_path / "resnet18.pth")
    loaded = build(name, pre_trained=True, backbone_weights=str(tmp_path / "resnet18.pth"))
    network = loaded.model.teacher_model if name == "stfpm" else loaded.model.feature_extractor
    found = {key.replace("feature_extractor.", ""): value for key, value in network.state_dict().items()}
    assert "layer1.1.conv2.weight" in found
    assert identical(found, {key: reference[key] for key in found})
    # The trained part starts as it would without the file.
    plain, trained = state(build(name)), state(loaded)
    rest = [key for key in plain if "teacher" not in key and "feature_extractor" not in key]
    rest += [key for key in plain if key.startswith("student_model")]
    assert rest
    assert all(torch.equal(plain[key], trained[key]) for key in rest)

    del reference["layer1.0.conv1.weight"]
    torch.save(reference, tmp_path / "incomplete.pth")
    with pytest.raises(ValueError, match=r"incomplete.pth' is not a state dict of 'resnet18'"):
        build(name, backbone_weights=str(tmp_path / "incomplete.pth"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build(name, backbone_weights=str(tmp_path / "missing.pth"))
    with pytest.raises(RuntimeError, match=r"could not be downloaded.*backbone_weights"):
        build(name, pre_trained=True)


def test_supervised_training_is_refused():
    with pytest.raises(ValueError, match="trains without labels"):
        build("supersimplenet", supervised=True)


@every_detector
def test_command_line_knows_the_class_by_name_and_explains_its_arguments(name, tmp_path, capsys):
    plugin.register()
    ours, _, settings = DETECTORS[name]
    with pytest.raises(SystemExit) as ended:
        AnomalibCLI(["train", f"--model.help={ours.__name__}"])
    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for argument, words_of_it in {
        "--model.backbone_weights": "Path of a local state-dict file",
        "--model.kappa": "Width of the fence",
        "--model.inner_lr": "Learning rate alpha",
        "--model.evaluator": "Evaluator",
    }.items():
        assert argument in words
        assert words_of_it in words
    own = {"fastflow": "--model.flow_steps", "stfpm": "--model.layers", "supersimplenet": "--model.perlin_threshold"}
    assert own[name] in words
    small = [f"--model.{key}={value}" for key, value in settings.items()]
    parsed = AnomalibCLI(
        ["train", "--model", ours.__name__, "--model.pre_trained=false", *small, "--data=MVTecAD"], run=False
    )
    assert type(parsed.model) is ours
