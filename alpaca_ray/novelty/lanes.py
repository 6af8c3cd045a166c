"""Whole rows of LCS lengths: many queries side by side against every entry.

Each query is a lane of 16, 32 or 64 bits in a vector of 512, as its length needs, and one step of Hyyrö's algorithm
(see ``rouge``) serves all lanes. The vector operations are written as LLVM's own, which become whatever vector
instructions the machine has. Tokens that no query of the group holds change nothing and are skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from alpaca_ray.novelty.compiled import compiled
from alpaca_ray.novelty.rouge import clear_masks, lcs_long, lcs_with_masks, set_masks

_LANES = ((16, np.uint16), (32, np.uint32), (64, np.uint64))  # longest query, and the lane that holds it
_VECTOR_BYTES = 64
_BLOCK = 256  # entries whose lengths are turned from columns into rows at once


def lcs_rows(
    queries: NDArray[np.int32],
    query_offsets: NDArray[np.int64],
    chosen: NDArray[np.int64],
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    vocabulary: int,
    out: NDArray[Any],
) -> None:
    """Fill rows of ``out``, shape (queries, entries), with LCS lengths of the ``chosen`` queries against all entries.

    Args:
        queries, query_offsets: token lists as in ``TokenLists``.
        chosen: indices of the queries to do.
        tokens, offsets: the entries' token lists, shapes (tokens,) and (entries + 1,).
        vocabulary: a number above every token's.
        out: uint8 where no query is longer than 255 tokens, else int32.
    """
    lengths = np.diff(query_offsets)[chosen]
    entries = len(offsets) - 1
    slots = np.full(vocabulary, -1, dtype=np.int32)
    shortest = -1
    for longest, lane in _LANES:
        within = chosen[(lengths <= longest) & (lengths > shortest)]
        shortest = longest
        lanes = _VECTOR_BYTES // np.dtype(lane).itemsize
        for start in range(0, len(within), lanes):
            group = within[start : start + lanes]
            # Row 0: the bits in use; row 1: the state; then a row for each distinct token of the group.
            masks = np.zeros((int(np.diff(query_offsets)[group].sum()) + 2, lanes), dtype=lane)
            rows = np.empty((len(group), entries), dtype=np.uint8)
            _lane_rows(queries, query_offsets, group, tokens, offsets, slots, masks, rows)
            out[group] = rows
    if (lengths > shortest).any():
        long_masks = np.zeros(vocabulary, dtype=np.uint64)
        row = np.empty(entries, dtype=np.int32)
        for query in chosen[lengths > shortest]:
            _long_row(queries, query_offsets[query], query_offsets[query + 1], tokens, offsets, long_masks, row)
            out[query] = row


def _vector(array: Any) -> ir.VectorType:
    return ir.VectorType(ir.IntType(array.dtype.bitwidth), _VECTOR_BYTES * 8 // array.dtype.bitwidth)


def _row(context: Any, builder: Any, kind: Any, array: Any, row: Any, size: int) -> Any:
    """Return the address of a row of a C-contiguous matrix whose rows have ``size`` bytes."""
    data = builder.bitcast(context.make_array(kind)(context, builder, array).data, ir.IntType(8).as_pointer())
    return builder.gep(data, [builder.mul(row, ir.Constant(row.type, size))])


def _load(builder: Any, address: Any, vector: Any) -> Any:
    loaded = builder.load(builder.bitcast(address, vector.as_pointer()))
    loaded.align = 1
    return loaded


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=1)


@intrinsic
def _start(_context: Any, masks: Any) -> Any:
    """Set the state to all bits in use."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, index = signature.args[0], ir.IntType(64)
        used = _row(context, builder, kind, arguments[0], ir.Constant(index, 0), _VECTOR_BYTES)
        state = _row(context, builder, kind, arguments[0], ir.Constant(index, 1), _VECTOR_BYTES)
        _store(builder, _load(builder, used, _vector(kind)), state)
        return context.get_dummy_value()

    return types.void(masks), emit


@intrinsic
def _step(_context: Any, masks: Any, row: Any) -> Any:
    """Take one token, whose masks are in ``row``, into the state."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        address = _row(context, builder, kind, arguments[0], ir.Constant(ir.IntType(64), 1), _VECTOR_BYTES)
        state = _load(builder, address, _vector(kind))
        mask = _load(builder, _row(context, builder, kind, arguments[0], arguments[1], _VECTOR_BYTES), _vector(kind))
        hit = builder.and_(state, mask)
        _store(builder, builder.or_(builder.add(state, hit), builder.sub(state, hit)), address)
        return context.get_dummy_value()

    return types.void(masks, types.int64), emit


@intrinsic
def _finish(_context: Any, masks: Any, out: Any, entry: Any) -> Any:
    """Write the LCS length of every lane into a row of ``out``: the bits in use that the state has lost."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, index = signature.args[0], ir.IntType(64)
        used, state = (
            _load(
                builder,
                _row(context, builder, kind, arguments[0], ir.Constant(index, row), _VECTOR_BYTES),
                _vector(kind),
            )
            for row in (0, 1)
        )
        vector = _vector(kind)
        count_bits = builder.module.declare_intrinsic(
            f"llvm.ctpop.v{vector.count}i{vector.element.width}", fnty=ir.FunctionType(vector, [vector])
        )
        # All bits of every lane flipped: the builder's own `not_` is for single integers.
        lost = builder.xor(state, ir.Constant(vector, [-1] * vector.count))
        common = builder.call(count_bits, [builder.and_(used, lost)])
        lengths = builder.trunc(common, ir.VectorType(ir.IntType(8), vector.count))
        target = _row(context, builder, signature.args[1], arguments[1], arguments[2], _vector(kind).count)
        _store(builder, lengths, target)
        return context.get_dummy_value()

    return types.void(masks, out, types.int64), emit


@compiled
def _lane_rows(
    queries: NDArray[np.int32],
    query_offsets: NDArray[np.int64],
    group: NDArray[np.int64],
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    slots: NDArray[np.int32],
    masks: NDArray[Any],
    out: NDArray[np.uint8],
) -> None:
    """Fill ``out``, shape (group, entries). ``slots``: -1 for each token number, and again afterwards."""
    used = 2
    for lane in range(len(group)):
        begin = query_offsets[group[lane]]
        for place in range(begin, query_offsets[group[lane] + 1]):
            token = queries[place]
            if slots[token] < 0:
                slots[token] = used
                used += 1
            bit = np.uint64(1) << np.uint64(place - begin)
            masks[slots[token], lane] |= bit
            masks[0, lane] |= bit
    found = np.empty((_BLOCK, masks.shape[1]), dtype=np.uint8)
    for start in range(0, len(offsets) - 1, _BLOCK):
        size = min(_BLOCK, len(offsets) - 1 - start)
        for entry in range(size):
            _start(masks)
            for place in range(offsets[start + entry], offsets[start + entry + 1]):
                slot = slots[tokens[place]]
                if slot >= 0:
                    _step(masks, slot)
            _finish(masks, found, entry)
        for lane in range(len(group)):
            for entry in range(size):
                out[lane, start + entry] = found[entry, lane]
    for lane in range(len(group)):
        for place in range(query_offsets[group[lane]], query_offsets[group[lane] + 1]):
            slots[queries[place]] = -1


@compiled
def _long_row(
    queries: NDArray[np.int32],
    begin: int,
    end: int,
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    masks: NDArray[np.uint64],
    out: NDArray[np.int32],
) -> None:
    """Compute one row for a query of more than 64 tokens."""
    for entry in range(len(offsets) - 1):
        first, last = offsets[entry], offsets[entry + 1]
        if last - first <= 64:  # the shorter list takes the bits
            set_masks(masks, tokens, first, last)
            out[entry] = lcs_with_masks(masks, last - first, queries, begin, end)
            clear_masks(masks, tokens, first, last)
        else:
            out[entry] = lcs_long(masks, queries, begin, end, tokens, first, last)
