# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""A headless Chromium for tests of pages."""

import os
import shutil

import pytest

REQUIRED = "ANOMALIB_COMET_REQUIRE_BROWSER"
"""Environment variable under which a missing browser fails the tests instead of skipping them."""


def chromium(downloads):
    """Start a headless Chromium with the machine's own driver; nothing is downloaded.

    Args:
        downloads: Folder for what pages save.

    Returns:
        The driver, which has to be quit.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "The page is tested in Chromium, which is not here: apt-get install chromium chromium-driver."
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Containers have neither a sandbox nor a large /dev/shm.
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": False}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(executable_path=driver))
