# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What stands in the page: no markup out of names, nothing from elsewhere."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from anomalib_comet.audit import audit
from anomalib_comet.audit.page import embedded_json

NASTY = [
    "</script><script>alert(1)</script>.png",
    "<img src=x onerror=alert(1)>.png",
    "quotes \"double\" 'single' `back`.png",
    "{{script}} {{images}} ${1}.png",
    "ünï-日本-😀 &amp; &lt;.png",
    "line\nbreak,\u2028comma.png",
    "n" * 240 + ".png",
    b"not utf-8 \xff.png".decode("utf-8", "surrogateescape"),
]


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.attributes, self.texts = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs).get("id")))
        self.attributes += attrs

    def handle_data(self, data):
        if not self.found:
            return
        self.texts[self.found[-1]] = self.texts.get(self.found[-1], "") + data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nasty")
    paths = []
    for name in NASTY:
        path = folder / name  # a slash makes a folder: "<" holds "script><script>alert(1)<", which holds "script>.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "grey").save(path)
        paths.append(str(path))
    scores = np.arange(len(paths), 0.0, -1.0)
    result = audit(paths, scores, folder / "out", title="<b>&run</b>", maps=[np.ones((8, 8))] * len(paths))
    return paths, result, result.page_path.read_text(encoding="utf-8")


def test_names_are_data_and_never_markup(page):
    paths, _, text = page
    elements = Elements()
    elements.feed(text)
    assert sum(tag == "script" for tag, _ in elements.found) == 3  # data, one block of pictures, the program
    assert "<img src=x" not in text
    assert not any(name.startswith("on") for name, _ in elements.attributes)
    data = json.loads(elements.texts["script", "data"])
    assert [data["folders"][row[0]] + "/" + row[1] for row in data["rows"]] == paths
    assert "&lt;b&gt;&amp;run&lt;/b&gt;" in text
    blocks = json.loads(elements.texts["script", "block0"])
    assert len(blocks) == len(paths)
    assert all(thumbnail and heat for thumbnail, heat in blocks)


def test_nothing_is_loaded_from_anywhere(page):
    text = page[2]
    elements = Elements()
    elements.feed(text)
    addresses = [value for name, value in elements.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert addresses == []
    policy = next(value for name, value in elements.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"@import|url\(", text)


def test_csv_has_all_names_as_they_are(page):
    paths, result, _ = page
    raw = result.csv_path.read_bytes()
    assert b"not utf-8 \xff.png" in raw
    assert raw.count(b"unreadable") == 0
    assert "ünï-日本-😀".encode() in raw
    assert len(result.table) == len(paths)


@pytest.mark.parametrize("value", ["</script>", "<!--", "]]>", "&lt;", "\u2028", "\udcff"])
def test_embedded_json_is_plain_ascii_and_comes_back(value):
    text = embedded_json([value])
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == [value]


def test_not_a_number_is_no_json():
    with pytest.raises(ValueError, match=r"JSON compliant|Out of range"):
        embedded_json(float("nan"))


def test_limit_unreadable_and_bad_arguments(tmp_path):
    good, bad, gone = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "gone.png"
    Image.new("RGB", (40, 30)).save(good)
    bad.write_bytes(good.read_bytes()[:60])
    result = audit([good, bad, gone], [1.0, 3.0, 2.0], tmp_path / "out", limit=2)
    assert result.table["status"].tolist() == ["unreadable", "unreadable", "ok"]
    assert set(result.unreadable) == {str(bad), str(gone)}
    text = result.page_path.read_text(encoding="utf-8")
    assert '"leftOut":1' in text
    assert "good.png" not in text
    assert len(result.csv_path.read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="limit must be at least 1"):
        audit([good], [1.0], tmp_path, limit=0)
    with pytest.raises(ValueError, match="thumbnail_size must be between"):
        audit([good], [1.0], tmp_path, thumbnail_size=4)
    with pytest.raises(ValueError, match="one anomaly map an image"):
        audit([good], [1.0], tmp_path, maps=[])


def test_an_interrupted_page_leaves_the_old_one(tmp_path, monkeypatch):
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(image)
    first = audit([image], [1.0], tmp_path / "out").page_path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anomalib_comet.audit.page._blocks", full)
    with pytest.raises(OSError, match="No space left"):
        audit([image], [2.0], tmp_path / "out")
    assert (tmp_path / "out" / "audit.html").read_bytes() == first
    assert not list((tmp_path / "out").glob("*.partial"))
