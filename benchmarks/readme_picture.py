# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The picture of the README from a finished run: most suspicious training images, and heat maps of test images.

python benchmarks/readme_picture.py --run results/CoMetDifferNet/.../v0 --out docs/images/comet_differnet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from anomalib.data.utils import read_image

from anomalib_comet.models import CoMetDifferNet

mpl.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, with confidence_weights.csv")
    parser.add_argument("--tests", type=Path, nargs="+", default=[], help="test images for the second row")
    parser.add_argument("--out", type=Path, default=Path("docs/images/comet_differnet.png"), help="picture")
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.run / "confidence_weights.csv")
    model = CoMetDifferNet.load_from_checkpoint(arguments.run / "weights" / "lightning" / "model.ckpt").eval()

    columns = max(8, len(arguments.tests))
    figure, axes = plt.subplots(2 if arguments.tests else 1, columns, figsize=(1.6 * columns, 4.2), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row in zip(axes[0], table.itertuples(), strict=False):
        axis.imshow(plt.imread(row.image_path))
        hidden = row.defect_type if row.injected else "normal"
        axis.set_title(
            f"#{row.rank} weight {row.confidence_weight:.2f}\n{hidden}",
            fontsize=9,
            color="crimson" if row.injected else "black",
        )
    for axis, path in zip(axes[-1], arguments.tests, strict=False):
        image = read_image(path, as_tensor=True)
        with torch.no_grad():
            prediction = model(image[None])
        heat = torch.nn.functional.interpolate(prediction.anomaly_map, size=tuple(image.shape[1:]), mode="bilinear")
        axis.imshow(image.permute(1, 2, 0))
        axis.imshow(heat[0, 0], cmap="jet", alpha=0.45, vmin=0, vmax=1)
        axis.set_title(f"{path.parent.name}\nscore {prediction.pred_score.item():.2f}", fontsize=9)
    figure.text(0.005, 0.97, "most suspicious training images (red: hidden defects)", fontsize=10, weight="bold")
    if arguments.tests:
        figure.text(0.005, 0.47, "test images with anomaly map", fontsize=10, weight="bold")
    figure.subplots_adjust(left=0.005, right=0.995, top=0.84, bottom=0.01, wspace=0.05, hspace=0.45)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
