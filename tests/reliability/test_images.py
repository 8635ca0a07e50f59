"""Images that claim to be larger than they are."""

import io
import resource

import pytest
from PIL import Image

from envs.data.images import read_header, webp_size
from envs.errors import InputError


def webp(**options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 7), (200, 10, 30)).save(buffer, "WEBP", **options)
    return buffer.getvalue()


KINDS = {"VP8 ": webp(), "VP8L": webp(lossless=True), "VP8X": webp(exif=b"Exif\x00\x00x")}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_webp_are_known_before_pillow_allocates_them(kind, tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(KINDS[kind])
    assert KINDS[kind][12:16] == kind.encode()
    assert webp_size(str(path)) == (300, 7)
    assert read_header(str(path))[:2] == (300, 7)


def test_a_canvas_of_a_gigabyte_is_refused_without_allocating_it(tmp_path):
    content = bytearray(KINDS["VP8X"])
    content[24:30] = (16_382).to_bytes(3, "little") * 2
    (tmp_path / "a.webp").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"has 16383 x 16383 pixels; expected at most 64,000,000; shrink it"):
        read_header(str(tmp_path / "a.webp"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10
