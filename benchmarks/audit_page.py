# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Size of an audit's page of many images, and how fast Chromium opens and scrolls it.

python benchmarks/audit_page.py --images 10000

Thumbnails and heat maps are those of rendered surfaces of all five materials, 100 different ones in turn. Needs
chromium, chromedriver and the development dependencies.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from anomalib_comet.audit.page import Facts, Pictures, write_page
from anomalib_comet.audit.tiles import aligned_map, grid_shape, map_picture, thumbnail
from anomalib_comet.data.procedural_surfaces import MATERIALS, SurfaceSpec, render

DIFFERENT = 100


def pictures(size: int) -> list[Pictures]:
    """Return thumbnails and heat maps of rendered surfaces; a map is the image's smoothed brightness."""
    materials, made = sorted(MATERIALS), []
    for k in range(DIFFERENT):
        pixels, _ = render(SurfaceSpec(materials[k % len(materials)], "train", index=k, image_size=(256, 256)))
        brightness = torch.from_numpy(pixels.mean(axis=2, dtype=np.float32))[None, None]
        smooth = torch.nn.functional.avg_pool2d(brightness, 31, stride=4, padding=15)[0, 0]
        heat = aligned_map(smooth, (0.0, 0.0, 1.0, 1.0), grid_shape(256, 256, size))
        limits = (float(heat.min()), float(heat.max()))
        made.append(Pictures(thumbnail(Image.fromarray(pixels), size), map_picture(heat, limits)))
    return made


def browse(page: Path) -> dict[str, float]:
    """Open the page, turn on the heat maps and jump through it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1600,1000"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    driver.set_script_timeout(120)

    def run(script: str, *values: Any) -> Any:
        return driver.execute_script(script, *values)

    try:
        begin = time.perf_counter()
        driver.get(page.as_uri())
        while not run("return document.documentElement.dataset.ready"):
            time.sleep(0.01)
        opened = time.perf_counter() - begin
        run("document.getElementById('heat').click()")
        jumps = [
            driver.execute_async_script(
                """
                const [share, done] = arguments, grid = document.getElementById('grid'), begin = performance.now();
                grid.scrollTop = share * grid.scrollHeight;
                const drawn = () => {
                  const tiles = [...document.querySelectorAll('.tile')];
                  return tiles.every((t) => t.querySelector('img').complete && t.querySelector('[data-painted]'));
                };
                const look = () => (drawn() ? done(performance.now() - begin) : requestAnimationFrame(look));
                requestAnimationFrame(() => requestAnimationFrame(look));
                """,
                float(share),
            )
            for share in np.random.default_rng(0).random(20)
        ]
        return {
            "opened, s": opened,
            "jump with all pictures and maps drawn, median ms": statistics.median(jumps),
            "slowest jump, ms": max(jumps),
            "elements in the document": run("return document.getElementsByTagName('*').length"),
            "script heap, MB": run("return performance.memory.usedJSHeapSize") / 1e6,
        }
    finally:
        driver.quit()


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="images in the page (default: %(default)s)")
    parser.add_argument("--thumbnail-size", type=int, default=144, help="in pixels (default: %(default)s)")
    arguments = parser.parse_args()

    count, made = arguments.images, pictures(arguments.thumbnail_size)
    table = pd.DataFrame(
        {
            "rank": pd.Series(range(1, count + 1), dtype="Int64"),
            "image_path": [f"/datasets/line/camera {k % 7}/{k:06}.png" for k in range(count)],
            "anomaly_score": np.geomspace(50, 0.5, count),
            "confidence_weight": np.minimum(1, np.linspace(0.1, 5, count)),
            "status": "ok",
        }
    )
    of_path = {path: made[k % DIFFERENT] for k, path in enumerate(table["image_path"])}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "audit.html"
        begin = time.perf_counter()
        write_page(page, table, of_path, Facts("many images", "", 2.0, arguments.thumbnail_size, (0.0, 1.0)))
        print(f"{count} images, thumbnails of {arguments.thumbnail_size} pixels")
        print(f"written, s: {time.perf_counter() - begin:.2f}")
        print(f"size, MB: {page.stat().st_size / 1e6:.1f}")
        for name, value in browse(page).items():
            print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
