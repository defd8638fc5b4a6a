"""Pictures that a report shows are opened as images are, and in no other way."""

import os

import numpy as np
import pytest

from ifsq.bench.pictures import SCALE, picture
from ifsq.data import BrokenImageError, write_png


def test_a_picture_of_another_kind_starts_no_program(tmp_path, monkeypatch):
    write_png(np.zeros((4, 6, 3), np.uint8), tmp_path / "real.png")
    assert picture(tmp_path / "real.png", "", "nothing").width == 6 * SCALE
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "real.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n")
    with pytest.raises(BrokenImageError, match=r"real\.png cannot be read: "):
        picture(tmp_path / "real.png", "", "nothing")
    assert not (tmp_path / "started").exists()
