# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What is found out about an image file without decoding it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anomalib_comet.data.images import problem_of, problems_of, sentence

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
FORMATS = {
    "png": {},
    "jpg": {},
    "bmp": {},
    "webp": {},
    "ppm": {},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
}


def encoded(suffix):
    buffer = io.BytesIO()
    kind = Image.registered_extensions()[f".{suffix}"]
    Image.fromarray(PIXELS).save(buffer, format=kind, **FORMATS[suffix])
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(list(FORMATS)), kept=st.floats(0, 1) | st.just(1.0), extra=st.binary(max_size=40))
def test_what_is_passed_can_be_decoded_wherever_a_file_was_cut(folder, suffix, kept, extra):
    whole = encoded(suffix)
    size = round(kept * len(whole))
    # What a disk leaves behind a cut is zeros; a forged end of the format is only found by decoding.
    content = whole[:size] + (extra if size == len(whole) else bytes(len(extra)))
    path = folder / f"cut.{suffix}"
    path.write_bytes(content)
    if not problem_of(str(path)):
        Image.open(path).convert("RGB")
    if content.startswith(whole):
        assert problem_of(str(path)) == ""


def test_what_is_wrong_is_told(tmp_path):
    deep = (PIXELS[..., 0].astype(np.uint16)) * 200
    contents = {
        "empty.png": (b"", "the file is empty"),
        "page.png": (b"<html>404</html>", "text and no image"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "zeros.png": (b"\0" * 99, "nothing but zeros"),
        "noise.png": (b"\x07noise", "no image that Pillow reads"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    expected = {name: said for name, (_, said) in contents.items()} | {
        "deep.png": f"16-bit greyscale image with values from {deep.min()} to {deep.max()}",
        "float.tif": "floating-point",
        "link.png": "a link to a file that is not there",
        "none.png": "no such file",
        "folder.png": "cannot be opened (Is a directory)",
    }
    problems = problems_of(tmp_path / name for name in expected)
    for name, said in expected.items():
        assert said in problems.pop(str(tmp_path / name)), name
    assert problems == {}
    # Of a mask only zero and not zero count.
    assert problem_of(str(tmp_path / "deep.png"), is_mask=True) == ""


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "16 bits of little"])
def test_images_of_all_usual_kinds_pass(tmp_path, mode):
    image = Image.fromarray(PIXELS)
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16)) if " " in mode else image.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    assert problem_of(str(path)) == ""
    assert problem_of(str(path), decode=True) == ""


def test_a_few_are_named_and_the_others_counted():
    said = sentence({f"{k}.png": "the file is empty" for k in range(8)}, 1000, "training images")
    assert said.startswith("8 of 1000 training images cannot be used: 0.png: the file is empty; 1.png")
    assert "4.png: the file is empty; and 3 others. Mend or remove them." in said
    assert "5.png" not in said
