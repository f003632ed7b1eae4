"""The first page's animation is what its script computes."""

import base64
import json

import numpy as np
import pytest

from tools import draw_collapse


def content(script: str) -> dict:
    return json.loads(script.removeprefix("window.COLLAPSE = ").rstrip().removesuffix(";"))


@pytest.fixture(scope="module")
def committed() -> dict:
    return content(draw_collapse.DATA.read_text(encoding="utf-8"))


def levels(found: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(found["positions"]), np.uint8).astype(int)


def test_the_committed_animation_is_the_computed_one(committed):
    now = content(draw_collapse.script(draw_collapse.frames()))
    for name in ("layers", "digits", "each", "drop"):
        assert now[name] == committed[name], name
    assert now["frames"].keys() == committed["frames"].keys()
    for name, values in committed["frames"].items():  # printed to three digits
        np.testing.assert_allclose(now["frames"][name], values, rtol=6e-3, err_msg=name)
    assert np.abs(levels(now) - levels(committed)).max() <= 1


def test_the_animation_shows_collapse(committed):
    """What the caption says: at the end the deeper layer is the tighter one, and the last one is tight."""
    last = committed["frames"]["nc1"][-1]
    assert last == sorted(last, reverse=True) and last[-1] < 0.01 < committed["frames"]["nc1"][0][-1]
    assert levels(committed).size == len(committed["frames"]["step"]) * len(committed["layers"]) * 3 * 40 * 2
