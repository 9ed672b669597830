"""Networks whose answer is known, their cards, and small scans to run them on."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from udean.runtime import EngineInfo, ModelCard
from udean.runtime.models.card import METADATA_KEY
from udean.runtime.pipeline.host import LrVolume, resolve_slabs


def card(scale, slices, window, grid="fft"):
    return ModelCard(
        name="test",
        method="none",
        scale=scale,
        slab=(slices, slices * scale[2]),
        window=window,
        grid=grid,
        intensity="percentile-99.9",
        skip="none",
        precision="fp32",
        parameters=1,
        toolkit="test",
        trained_on="nothing",
    )


def nearest(volume, scale):
    """Every voxel of (…, rows, columns, slices) repeated."""
    for axis, factor in enumerate(scale):
        volume = np.repeat(volume, factor, axis - 3)
    return volume


def stitched(volume, plan, scale, batch=None):
    rows, columns, slices = scale
    out = np.full(plan.fine_shape, np.nan, np.float32)
    for first, planes in resolve_slabs(
        LrVolume(volume), lambda x: nearest(x, (slices, rows, columns)), plan, batch
    ):
        out[:, :, first : first + len(planes)] = np.moveaxis(planes, 0, 2)
    return out


def interpolation(scale, grid):
    """A network that interpolates linearly on the right grid, and extrapolates at its windows' ends.

    Linear functions of position pass unchanged, so a misplaced voxel shows as the distance it is off.
    """

    def matrix(size, factor):
        fine = np.arange(size * factor)
        position = fine / factor if grid == "fft" else (fine + 0.5) / factor - 0.5
        left = np.clip(np.floor(position).astype(int), 0, max(size - 2, 0))
        weights = np.zeros((size * factor, size))
        weights[fine, np.minimum(left + 1, size - 1)] = position - left
        weights[fine, left] += 1 - (position - left)
        return weights

    def network(windows):
        rows, columns, slices = (matrix(windows.shape[n], f) for n, f in zip((2, 3, 1), scale, strict=True))
        return np.einsum("nkij,zk,yi,xj->nzyx", windows, slices, rows, columns, optimize=True).astype(
            np.float32
        )

    return network


class FakeEngine:
    """An engine of a plain function."""

    def __init__(self, network, card):
        self.network, self.card = network, card
        self.info = EngineInfo("numpy", np.__version__, "cpu", card.precision, card.name, "0" * 64)

    def __call__(self, windows):
        return self.network(windows)


def onnx_model(path, model_card, kind="nearest", seed=0):
    """Write an ONNX model with its card: "nearest" ×2, or "conv", two convolutions with a nonlinearity.

    Precision is the card's. A card of None leaves the metadata out.
    """
    half = model_card is not None and model_card.precision == "fp16"
    dtype, name = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    slab, random = 3, np.random.default_rng(seed)

    def constant(name, value):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    if kind == "nearest":
        # channel z of the output is slice z // 2, repeated over its 2 × 2 neighbourhood
        weight = np.zeros((24, slab, 1, 1), dtype)
        for channel in range(24):
            weight[channel, channel // 8] = 1
        nodes = [
            constant("w", weight),
            helper.make_node("Conv", ["lr", "w"], ["deep"], kernel_shape=[1, 1]),
        ]
    else:
        nodes = [
            constant("a", (random.normal(size=(16, slab, 3, 3)) / 5).astype(dtype)),
            constant("b", (random.normal(size=(24, 16, 3, 3)) / 12).astype(dtype)),
            helper.make_node("Conv", ["lr", "a"], ["x"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.2),
            helper.make_node("Conv", ["y", "b"], ["deep"], kernel_shape=[3, 3], pads=[1] * 4),
        ]
    nodes.append(helper.make_node("DepthToSpace", ["deep"], ["sr"], blocksize=2, mode="CRD"))
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("lr", name, ["n", slab, "h", "w"])],
        [helper.make_tensor_value_info("sr", name, ["n", 2 * slab, "H", "W"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if model_card is not None:
        helper.set_model_props(model, {METADATA_KEY: model_card.to_json()})
    onnx.save(model, path)
    return path
