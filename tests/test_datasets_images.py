from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from qexp.datasets import images

SIDE = st.integers(1, 7)
STACK = st.tuples(st.integers(0, 3), SIDE, SIDE).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 255))
)
CALLS = [
    lambda x: images.resize(x, (5, 9)),
    lambda x: images.rotate(x, 17.5),
    lambda x: images.shift(x, 1.25, -0.5),
    lambda x: images.blur(x, 0.8),
    lambda x: images.contrast(x, 1.7),
]


def area_mean(image, shape):
    """Mean over the exact area of each new pixel, in fractions."""
    h, w = image.shape

    def shares(old, new):
        return [
            [
                max(
                    0,
                    min(Fraction(i + 1, new), Fraction(j + 1, old))
                    - max(Fraction(i, new), Fraction(j, old)),
                )
                * new
                for j in range(old)
            ]
            for i in range(new)
        ]

    rows, columns = shares(h, shape[0]), shares(w, shape[1])
    return [
        [
            float(sum(r[a] * c[b] * int(image[a, b]) for a in range(h) for b in range(w)) / 255)
            for c in columns
        ]
        for r in rows
    ]


@given(STACK, SIDE, SIDE)
def test_resize_is_the_mean_over_the_exact_area(stack, h, w):
    resized = images.resize(stack, (h, w))
    assert resized.shape == (len(stack), h, w)
    assert resized.dtype == np.float32
    for image, got in zip(stack, resized, strict=True):
        np.testing.assert_allclose(got, area_mean(image, (h, w)), rtol=3e-7, atol=1e-9)


def test_resize_of_whole_blocks_and_to_the_same_shape():
    stack = np.arange(32, dtype=np.float64).reshape(2, 4, 4)
    assert images.resize(stack, (2, 2)).tolist() == [
        [[2.5, 4.5], [10.5, 12.5]],
        [[18.5, 20.5], [26.5, 28.5]],
    ]
    np.testing.assert_array_equal(images.resize(stack, (4, 4)), stack)


def test_resize_beyond_one_block():
    stack = np.random.default_rng(0).random((2500, 6, 5), dtype=np.float32)
    resized = images.resize(stack, (4, 3))
    for i in (0, 1023, 1024, 2499):
        assert resized[i].tobytes() == images.resize(stack[i : i + 1], (4, 3))[0].tobytes()


@pytest.mark.parametrize("call", CALLS)
def test_each_image_depends_on_itself_alone(call):
    rng = np.random.default_rng(1)
    stack = rng.integers(0, 256, (9, 8, 6), dtype=np.uint8)
    together = call(stack)
    assert together.dtype == np.float32
    for i in range(len(stack)):
        assert call(stack[i : i + 1])[0].tobytes() == together[i].tobytes()
    poisoned = stack.astype(np.float32) / np.float32(255)
    poisoned[4] = np.nan
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert call(poisoned)[others].tobytes() == together[others].tobytes()


@pytest.mark.parametrize("call", CALLS)
def test_uint8_is_scaled_and_nothing_is_changed_in_place(call):
    stack = np.random.default_rng(2).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    before = stack.copy()
    scaled = stack.astype(np.float32) / np.float32(255)
    assert call(stack).tobytes() == call(scaled).tobytes()
    np.testing.assert_array_equal(stack, before)
    assert call(stack[:0]).shape[0] == 0


@pytest.mark.parametrize("shape", [(2, 7, 7), (2, 6, 6)])
def test_quarter_turns_are_counterclockwise(shape):
    stack = np.random.default_rng(3).random(shape, dtype=np.float32)
    for quarters in range(-3, 4):
        turned = images.rotate(stack, 90 * quarters)
        expected = np.rot90(stack, quarters, axes=(1, 2))
        # A corner may fall outside by a rounding error, where the value is 0.
        np.testing.assert_allclose(turned[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)


def test_rotation_agrees_with_scipy():
    stack = np.random.default_rng(4).random((3, 9, 11), dtype=np.float32)
    expected = ndimage.rotate(stack, 25, axes=(2, 1), reshape=False, order=1)
    np.testing.assert_allclose(images.rotate(stack, 25), expected, atol=1e-6)


def test_shift_moves_down_and_right_and_fills_with_zero():
    stack = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    assert images.shift(stack, 1, 2).tolist() == [[[0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 5, 6]]]
    assert images.shift(stack, 0, -1)[0, 0].tolist() == [2, 3, 4, 0]
    assert images.shift(stack, 0, 0.5)[0, 0, 1:].tolist() == [1.5, 2.5, 3.5]
    np.testing.assert_array_equal(images.shift(stack, 0, 0), stack)


def test_blur_spreads_a_point_and_keeps_the_sum():
    stack = np.zeros((2, 15, 15), dtype=np.float32)
    stack[0, 7, 7] = 1
    blurred = images.blur(stack, 1)
    assert blurred[0].sum() == pytest.approx(1, abs=1e-6)
    assert blurred[0, 7, 7] == pytest.approx(1 / (2 * np.pi), rel=1e-3)
    assert not blurred[1].any()
    np.testing.assert_array_equal(images.blur(stack, 0), stack)


def test_contrast():
    stack = np.array([[[0, 0.25, 0.5, 1]]])
    assert images.contrast(stack, 0.5).tolist() == [[[0.25, 0.375, 0.5, 0.75]]]
    assert images.contrast(stack, 4).tolist() == [[[0, 0, 0.5, 1]]]
    assert images.contrast(stack, 0).tolist() == [[[0.5] * 4]]
    np.testing.assert_array_equal(images.contrast(stack, 1), stack)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_not_a_stack_of_real_images_is_refused(call):
    with pytest.raises(ValueError, match=r"shape \(n, h, w\), got shape \(8, 8\)"):
        call(np.zeros((8, 8)))
    with pytest.raises(ValueError, match="real numbers, got dtype complex128"):
        call(np.zeros((1, 8, 8), dtype=complex))


def test_wrong_arguments_are_refused():
    stack = np.zeros((1, 4, 4))
    for shape in ((0, 4), (4,), (4, 4, 4), (-1, 2)):
        with pytest.raises(ValueError, match="shape must be two numbers"):
            images.resize(stack, shape)
    with pytest.raises(ValueError, match="no pixels"):
        images.resize(np.zeros((1, 0, 4)), (2, 2))
    with pytest.raises(ValueError, match="degrees must be finite"):
        images.rotate(stack, np.nan)
    with pytest.raises(ValueError, match="rows and columns must be finite"):
        images.shift(stack, 0, np.inf)
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="sigma must be"):
            images.blur(stack, bad)
        with pytest.raises(ValueError, match="factor must be"):
            images.contrast(stack, bad)
