from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.manifest import CanvasSpec, InputSpec
from edge.validation import validate_canvas
from train.canvas import AUTO_PIXELS, AUTO_STRETCH, CanvasRequest, bank_entries, choose_canvas
from train.commands.run import canvas_request

sizes = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=9)


def test_the_default_is_one_stretched_square() -> None:
    assert choose_canvas([], CanvasRequest()) == ((256, 256), CanvasSpec())
    assert not CanvasRequest().automatic


@given(sizes=sizes)
def test_whatever_is_chosen_automatically_can_be_built(sizes: list[tuple[int, int]]) -> None:
    (height, width), spec = choose_canvas(sizes, CanvasRequest(None, None, None, "auto"))
    validate_canvas(spec, InputSpec(height=height, width=width))
    assert height % 32 == 0
    assert width % 32 == 0
    assert spec.fit in ("stretch", "pad")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((900, 900), (256, 256)), ((768, 576), (288, 224)), ((500, 2000), (128, 512)), ((10, 4000), (64, 1024))],
)
def test_an_automatic_size_has_the_images_aspect_and_256_squared_pixels(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert choose_canvas([size] * 3, CanvasRequest(size=None))[0] == expected
    assert math.prod(expected) == pytest.approx(AUTO_PIXELS, rel=0.1)


@pytest.mark.parametrize(
    ("image", "tiles"),
    [((200, 200), (1, 1)), ((512, 600), (1, 2)), ((900, 900), (2, 2)), ((1000, 940), (3, 2)), ((5000, 300), (4, 1))],
)
def test_automatic_tiles_shrink_an_image_by_two_at_most(image: tuple[int, int], tiles: tuple[int, int]) -> None:
    spec = choose_canvas([image], CanvasRequest(tiles=None))[1]
    assert (spec.rows, spec.columns) == tiles
    assert spec.overlap == (32 if spec.tiles > 1 else 0)


def test_automatic_fit_stretches_what_stays_nearly_as_it_is() -> None:
    request = CanvasRequest(fit="auto")
    near, far = round(1000 * AUTO_STRETCH) - 2, round(1000 * AUTO_STRETCH) + 2
    assert choose_canvas([(1000, 1000), (1000, near)], request)[1].fit == "stretch"
    assert choose_canvas([(1000, 1000), (1000, far)], request)[1].fit == "pad"
    assert choose_canvas([(far, 1000)] * 9 + [(1000, 1000)], request)[1].fit == "pad"
    # Two tiles side by side are wide: so may the images be.
    wide = CanvasRequest(tiles=(1, 2), fit="auto")
    assert choose_canvas([(500, 940)], wide)[1].fit == "stretch"


@pytest.mark.parametrize(
    "request_",
    [
        CanvasRequest(tiles=(2, 2), overlap=33),
        CanvasRequest(tiles=(2, 2), overlap=160),
        CanvasRequest(tiles=(2, 2), overlap=256),
        CanvasRequest(tiles=(40, 1)),
        CanvasRequest(tiles=(300, 1)),
    ],
)
def test_what_cannot_be_is_refused(request_: CanvasRequest) -> None:
    with pytest.raises(UsageError, match="tiles of 256x256 pixels"):
        choose_canvas([], request_)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("256", "1x1", None, "stretch"), CanvasRequest()),
        (("128x64", "2x3", 32, "pad"), CanvasRequest((64, 128), (2, 3), 32, "pad")),
        (("auto", "auto", None, "auto"), CanvasRequest(None, None, None, "auto")),
    ],
)
def test_arguments(arguments: tuple[str, str, int | None, str], expected: CanvasRequest) -> None:
    assert canvas_request(*arguments) == expected


@pytest.mark.parametrize("tiles", ["", "2", "x", "2x", "0x2", "2x0", "-1x2", "2x2x2", "axb", "1.5x2"])
def test_tiles_that_are_none(tiles: str) -> None:
    with pytest.raises(UsageError, match="--tiles"):
        canvas_request("256", tiles, None, "stretch")


def test_the_bank_grows_slower_than_the_tiles() -> None:
    assert [bank_entries(32, tiles) for tiles in (1, 4, 9)] == [32, 64, 96]
