"""ONNX nodes that fit an image to the square that a network was trained on, bit-identical to Pillow.

Pillow resizes in fixed point: weights of 22 bits, one pass along the rows and one along the columns, each rounded and
clipped to 8 bits. A pass is a product with a matrix of whole numbers. In float64 such a product is exact in any order
of summation, so every runtime gives the same pixels. The bars of `ImageOps.pad` are rows of zeros in the matrices.
"""

from __future__ import annotations

from cnnlab.export.archive import MAY_BEGIN_WITH_COLUMNS, ONE
from cnnlab.export.build import DOUBLE, INT64, UINT8, Nodes
from cnnlab.io.decode import Decoding

_BLOCK = 32  # columns of the result that are computed at a time


def fit_nodes(g: Nodes, pixels: str, how: Decoding, output: str) -> str:
    """Add the nodes that fit `pixels` (B, C, H, W) uint8 to squares `output` (B, C, size, size) uint8, as `io.decode`.

    Images that already have this size pass through.
    """
    height, width = (g.Squeeze(g.Shape(pixels, start=dim, end=dim + 1)) for dim in (2, 3))
    native = g.And(g.Equal(height, how.size), g.Equal(width, how.size))
    same, other = g.branch("native"), g.branch("resized")
    return g.If(
        native,
        then_branch=same.graph(same.Identity(pixels)),
        else_branch=other.graph(_resized(other, pixels, height, width, how)),
        output=output,
    )


def _resized(g: Nodes, pixels: str, height: str, width: str, how: Decoding) -> str:
    h, w = g.Cast(height, to=DOUBLE), g.Cast(width, to=DOUBLE)
    new_h, rows, _ = _matrix(g, h, w, how)  # (size, H)
    new_w, columns, reach = _matrix(g, w, h, how)  # (size, W)
    columns = g.Transpose(columns, perm=(1, 0))
    if not MAY_BEGIN_WITH_COLUMNS:
        return _row_first(g, pixels, rows, columns, reach, how.size)
    lost = g.Sub(h, new_h)
    begins_with_columns = g.And(g.Greater(lost, 0.0), g.Greater(lost, g.Mul(2.0, g.Sub(w, new_w))))
    one, other = g.branch("columns"), g.branch("rows")
    return g.If(
        begins_with_columns,
        then_branch=one.graph(_column_first(one, pixels, rows, columns)),
        else_branch=other.graph(_row_first(other, pixels, rows, columns, reach, how.size)),
    )


def _row_first(g: Nodes, pixels: str, rows: str, columns: str, reach: tuple[str, str], size: int) -> str:
    """Resize the rows, then the columns. Each block of columns is computed from only those pixels it depends on.

    reach: for each column of the result, the first pixel that it depends on, and the one after the last, in float64.
    """
    parts = []
    for at in range(0, size, _BLOCK):
        end = min(at + _BLOCK, size)
        first, last = g.Slice(reach[0], [at], [at + 1]), g.Slice(reach[1], [end - 1], [end])
        width = g.Shape(pixels, start=3, end=4)
        first = g.Min(g.Max(g.Cast(first, to=INT64), [0]), g.Sub(width, [1]))
        last = g.Max(g.Min(g.Cast(last, to=INT64), width), g.Add(first, [1]))
        seen = g.Cast(g.Slice(pixels, first, last, [3]), to=DOUBLE)
        weights = g.Slice(g.Slice(columns, [at], [end], [1]), first, last, [0])
        parts.append(_rounded(g, g.MatMul(seen, weights)))
    joined = g.Concat(*parts, axis=3) if len(parts) > 1 else parts[0]
    return g.Cast(_rounded(g, g.MatMul(rows, joined)), to=UINT8)


def _column_first(g: Nodes, pixels: str, rows: str, columns: str) -> str:
    part = _rounded(g, g.MatMul(rows, g.Cast(pixels, to=DOUBLE)))
    return g.Cast(_rounded(g, g.MatMul(part, columns)), to=UINT8)


def _rounded(g: Nodes, sums: str) -> str:
    """Return sums in fixed point as whole numbers from 0 to 255, in float64."""
    return g.Clip(g.Floor(g.Mul(g.Add(sums, ONE / 2), 1 / ONE)), 0.0, 255.0)


def _matrix(g: Nodes, length: str, other: str, how: Decoding) -> tuple[str, str, tuple[str, str]]:
    """Return a side's resized length before padding, and Pillow's weights (size, length), in float64.

    Also return the first pixel that each pixel of the result depends on, and the one after the last, each (size,).
    length, other: the lengths of this side and of the other, in pixels. This is `precompute_coeffs` of Pillow's
    Resample.c; its xmin and xmax are called low and high here.
    """
    size = float(how.size)
    place, source = g.Range(0.0, size, 1.0), g.Range(0.0, length, 1.0)
    start, span, new = g.Mul(length, 0.0), length, g.Add(g.Mul(length, 0.0), size)
    if how.fit == "pad":
        new = g.Where(g.Less(length, other), g.Round(g.Mul(g.Div(length, other), size)), new)
        place = g.Sub(place, g.Round(g.Mul(g.Sub(size, new), 0.5)))
    elif how.fit == "crop":
        span = g.Min(length, other)
        start = g.Mul(g.Sub(length, span), 0.5)
    scale = g.Div(span, g.Max(new, 1.0))
    stretch = g.Max(scale, 1.0)
    support = g.Mul(stretch, 2.0) if how.interpolation == "bicubic" else stretch
    centre = g.Unsqueeze(g.Add(start, g.Mul(g.Add(place, 0.5), scale)), [1])
    low = g.Floor(g.Add(g.Sub(centre, support), 0.5))
    high = g.Floor(g.Add(g.Add(centre, support), 0.5))
    inside = g.And(g.GreaterOrEqual(source, low), g.Less(source, high))
    drawn = g.Unsqueeze(g.And(g.GreaterOrEqual(place, 0.0), g.Less(place, new)), [1])
    distance = g.Abs(g.Mul(g.Add(g.Sub(source, centre), 0.5), g.Div(1.0, stretch)))
    weight = g.Where(g.And(inside, drawn), _kernel(g, distance, how.interpolation), 0.0)
    total = g.ReduceSum(weight, [1], keepdims=1)
    fixed = g.Mul(g.Div(weight, g.Where(g.Equal(total, 0.0), 1.0, total)), ONE)
    weights = g.Mul(g.Sign(fixed), g.Floor(g.Add(g.Abs(fixed), 0.5)))
    return new, weights, (g.Squeeze(low, [1]), g.Squeeze(high, [1]))


def _kernel(g: Nodes, x: str, interpolation: str) -> str:
    if interpolation == "bilinear":
        return g.Max(g.Sub(1.0, x), 0.0)
    near = g.Add(g.Mul(g.Mul(g.Sub(g.Mul(1.5, x), 2.5), x), x), 1.0)
    far = g.Mul(g.Sub(g.Mul(g.Add(g.Mul(g.Sub(x, 5.0), x), 8.0), x), 4.0), -0.5)
    return g.Where(g.Less(x, 1.0), near, g.Where(g.Less(x, 2.0), far, 0.0))
