"""The array for coroutines: the same numbers as numpy's, with memory for a part of them."""

from __future__ import annotations

import numpy as np
import pytest

import dstorage
from dstorage.array.core import AsyncPagedArray


@pytest.fixture
async def small(tmp_path, memory):
    """A store with room for 16 KiB."""
    async with dstorage.open(
        tmp_path / "store", budget=2**14, controllers=[memory], commit_interval=None, pressure=None
    ) as opened:
        yield opened


async def test_an_array_many_times_the_budget_is_written_and_read_back(small):
    model = np.random.default_rng(1).random((256, 100))
    array = await AsyncPagedArray.create(small, "a", model.shape, "f8", tile=(2, 100))
    assert array.nbytes > 10 * 2**14
    for row in range(0, 256, 32):
        await array.write(np.s_[row : row + 32], model[row : row + 32])
        assert small.stats().used <= 2**14
    np.testing.assert_array_equal(await array.read(np.s_[100:110]), model[100:110])
    await array.write(np.s_[::3, 5:50:7], -1.0)
    model[::3, 5:50:7] = -1.0
    np.testing.assert_array_equal(await array.read(), model)
    await array.write(np.s_[1:5], [[1.0]] * 4)
    assert (await array.read((4, 3))) == 1.0


async def test_what_was_never_written_is_the_fill_value_and_takes_no_storage(store):
    array = await AsyncPagedArray.create(store, "a", (10**6, 10**6), "f4", fill=np.nan)
    assert np.isnan(await array.read((999_999, 999_999)))
    assert np.isnan(await array.view(np.s_[0:5, 0:5])).all()
    await store.commit()
    assert store.stats().chunks == 1
    await array.write((5, 5), 1)
    await store.commit()
    # The tile, and the nodes above it.
    assert store.stats().chunks < 6
    assert await array.read((5, 5)) == 1
    assert np.isnan(await array.read((5, 6)))


REDUCTIONS = ["sum", "min", "max", "mean", "var", "std", "any", "all", "argmin", "argmax"]


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", ">f4", "i4", ">i2", "u1", "?", "c16"])
async def test_reductions_are_those_of_numpy(store, kind):
    rng = np.random.default_rng(2)
    model = (rng.integers(0, 4, (7, 11, 5)) if kind != "?" else rng.integers(0, 2, (7, 11, 5))).astype(kind)
    if kind == "c16":
        model += 1j * rng.integers(0, 9, model.shape)
    array = await AsyncPagedArray.create(store, "a", model.shape, kind, tile=(3, 4, 2))
    await array.write(..., model)
    for name in REDUCTIONS:
        for axis in [None, 0, 1, -1, (0, 2)]:
            if isinstance(axis, tuple) and name.startswith("arg"):
                continue
            for keepdims in (False, True):
                expected = getattr(model, name)(axis=axis, keepdims=keepdims)
                found = await getattr(array, name)(axis=axis, keepdims=keepdims)
                assert np.shape(found) == np.shape(expected), (name, axis)
                assert np.asarray(found).dtype == np.asarray(expected).dtype, (name, axis)
                np.testing.assert_allclose(
                    found, expected, rtol=5e-3 if kind == "f2" else 1e-5, err_msg=f"{name} {axis}"
                )


async def test_a_nan_is_the_extreme_and_the_first_of_equals_wins(store):
    model = np.zeros((6, 6))
    array = await AsyncPagedArray.create(store, "a", model.shape, tile=(2, 2))
    assert await array.argmin() == 0
    model[0, 5] = model[1, 0] = -1
    await array.write(..., model)
    assert await array.argmin() == model.argmin() == 5
    model[5, 5] = model[2, 3] = np.nan
    await array.write(..., model)
    assert await array.argmin() == model.argmin()
    assert await array.argmax() == model.argmax()
    np.testing.assert_array_equal(await array.argmax(axis=0), model.argmax(axis=0))
    np.testing.assert_array_equal(await array.argmin(axis=1), model.argmin(axis=1))
    assert np.isnan(await array.max())
    array = await AsyncPagedArray.create(store, "complex", 6, "c16", tile=2)
    model = np.array([1 + 2j, 3, complex(np.nan, 1), complex(1, np.nan), 0, 2j])
    await array.write(..., model)
    assert [await array.argmin(), await array.argmax()] == [2, 2]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("keepdims", [False, True])
async def test_reductions_of_an_array_without_axes_are_those_of_numpy(store, name, keepdims):
    array = await AsyncPagedArray.create(store, "a", (), "f4")
    await array.write(..., 3.5)
    model = getattr(np, name)(np.full((), 3.5, "f4"), keepdims=keepdims)
    result = await getattr(array, name)(keepdims=keepdims)
    assert (result, type(result), result.dtype) == (model, type(model), model.dtype)


async def test_reductions_of_nothing_are_those_of_numpy(store):
    array = await AsyncPagedArray.create(store, "a", (0, 3))
    assert await array.sum() == 0
    assert (await array.sum(axis=0)).shape == (3,)
    assert np.isnan(await array.mean())
    assert await array.all()
    for name in ["min", "max", "argmin", "argmax"]:
        with pytest.raises(ValueError, match=r"empty|zero-size"):
            await getattr(array, name)()
    assert (await array.argmin(axis=1, keepdims=True)).shape == (0, 1)
    with pytest.raises(np.exceptions.AxisError):
        await array.sum(axis=2)
    with pytest.raises(dstorage.InvalidArgumentError, match="twice"):
        await array.sum(axis=(0, -2))
    with pytest.raises(dstorage.InvalidArgumentError, match=r"\(2, 3\) for a result of shape \(3,\)"):
        await array.sum(axis=0, out=np.empty((2, 3)))


def padded(model, halo, boundary):
    mode = {"periodic": "wrap", "fill": "constant"}.get(boundary, "constant")
    values = (
        {}
        if mode == "wrap"
        else {"constant_values": 7 if boundary == "fill" else 0 if isinstance(boundary, str) else boundary}
    )
    return np.pad(model, halo, mode=mode, **values)


@pytest.mark.parametrize("boundary", ["clip", "periodic", "fill", -3])
@pytest.mark.parametrize("halo", [0, 1, 3, (2, 0), (9, 12)])
async def test_a_tile_comes_with_the_border_of_its_neighbours(store, boundary, halo):
    model = np.arange(70).reshape(7, 10)
    array = await AsyncPagedArray.create(store, "a", model.shape, "i8", tile=(3, 4), fill=7)
    await array.write(..., model)
    widths = (halo, halo) if isinstance(halo, int) else halo
    around = padded(model, [(width, width) for width in widths], boundary)
    seen = np.zeros(model.shape, int)
    async for block in array.tiles(halo=halo, boundary=boundary):
        seen[block.slices] += 1
        np.testing.assert_array_equal(block.core, model[block.slices])
        assert not block.data.flags.writeable
        if boundary == "clip":
            expected = model[
                tuple(slice(max(0, s.start - w), s.stop + w) for s, w in zip(block.slices, widths, strict=True))
            ]
        else:
            expected = around[tuple(slice(s.start, s.stop + 2 * w) for s, w in zip(block.slices, widths, strict=True))]
        np.testing.assert_array_equal(block.data, expected)
    assert (seen == 1).all()


async def test_bands_go_across_all_columns(store):
    model = np.arange(70).reshape(7, 10)
    array = await AsyncPagedArray.create(store, "a", model.shape, "i8", tile=(3, 4))
    await array.write(..., model)
    shapes = [band.data.shape async for band in array.bands(halo=1)]
    assert shapes == [(4, 10), (5, 10), (2, 10)]
    assert [band.data.shape async for band in array.bands(5)] == [(5, 10), (2, 10)]
    with pytest.raises(dstorage.InvalidArgumentError, match="blocks of shape"):
        array.bands(0)


@pytest.mark.parametrize(
    "arguments",
    [{"halo": value} for value in (-1, (1,), 1.5, None, "1", (1, None))]
    + [
        {"boundary": value}
        for value in ("mirror", "3", ("clip",), None, ("fill", None), (1, 2), [1, 2, 3], {}, 300, 1j, np.arange(3))
    ],
    ids=str,
)
async def test_what_makes_no_halo_is_refused_by_name(store, arguments):
    array = await AsyncPagedArray.create(store, "a", (4, 4), "i1")
    for parts in (array.tiles, array.bands):
        with pytest.raises(dstorage.InvalidArgumentError, match=next(iter(arguments))):
            parts(**arguments)


@pytest.mark.parametrize("shape", [5, (0, 1), (5,), (1.5, 2), None, "ab"])
async def test_what_is_no_shape_of_a_block_is_refused_by_name(store, shape):
    array = await AsyncPagedArray.create(store, "a", (4, 4))
    with pytest.raises(dstorage.InvalidArgumentError, match="blocks of shape"):
        array.blocks(shape)


async def test_a_boundary_that_is_no_number_is_the_same_for_all_axes_or_refused(store):
    array = await AsyncPagedArray.create(store, "a", (4, 4), fill=2)
    for boundary in (np.nan, (np.nan, float("nan")), np.float32("nan")):
        async for block in array.tiles(halo=1, boundary=boundary):
            assert np.isnan(block.data[0]).all()
    async for block in array.bands(halo=np.array([1, 1]), boundary=("fill", 2)):
        assert (block.data == 2).all()
