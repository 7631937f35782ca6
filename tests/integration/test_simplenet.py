# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""SimpleNet through anomalib's engine: what is its own, beside ``test_comet_detectors.py``."""

import numpy as np
import openvino as ov
import torch
from anomalib.deploy import ExportType

from anomalib_comet.models import SimpleNet
from helpers.tiny import engine


def test_aggregation_with_the_published_ratios_exports_with_a_crop(tmp_path):
    # 576 and 1152 values into 192, as 4608 and 9216 go into 1536: the pooling has bins of equal size.
    model = SimpleNet(
        backbone="resnet18",
        layers=["layer1", "layer2"],
        pre_trained=False,
        image_size=(80, 80),
        center_crop=(64, 72),
        feature_dim=192,
        hidden_units=32,
        visualizer=False,
    ).eval()
    images = torch.rand(3, 3, 100, 90)
    path = engine(tmp_path).export(model, ExportType.ONNX, export_root=tmp_path)
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {next(iter(port.get_names())): value for port, value in compiled([images.numpy()]).items()}
    with torch.no_grad():
        expected = model(images)
    assert found["anomaly_map"].shape[-2:] == (64, 72)
    for name in ("pred_score", "anomaly_map"):
        difference = np.abs(found[name].ravel() - getattr(expected, name).numpy().ravel()).max()
        assert difference <= 1e-4, name
