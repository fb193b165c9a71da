"""Our own backend of sparse convolution: gather and multiply in plain torch, on any device.

For a block of output sites the inputs under all weights are gathered side by side, a row of zeros
where there is none, and one matrix product sums over weights and channels. Nothing is scattered, so
the same input gives the same bits on any number of threads or on a GPU; the products with zeros
cost less than scattering would. Nothing gathered is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdlib.models.sparse.rulebook import Rulebook, Share

# elements gathered at a time: what a cache holds; what keeps an accelerator busy
_CACHED, _LARGE = 1 << 21, 1 << 26
_BLOCK = 256  # blocks are multiples of this many rows
_IMAGES = 16  # see _multiply
_WIDE = 32  # channels from which on shares pay


def convolve(features: Tensor, weight: Tensor, book: Rulebook) -> Tensor:
    """Return the features (V_in, Cin) convolved with weights (Cout, K, Cin), as (V_out, Cout);
    under autocast in its dtype.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        features, weight = features.to(kind), weight.to(kind)
    return _Convolve.apply(features, weight, book)


class _Convolve(torch.autograd.Function):
    """The convolution with its gradients."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, book: Rulebook) -> Tensor:
        """Gather inputs, multiply."""
        ctx.save_for_backward(features, weight)
        ctx.book = book
        return _gather_multiply(features, weight, book)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of features and weights."""
        features, weight = ctx.saved_tensors
        book = ctx.book
        gradient = gradient.contiguous()
        to_features = to_weight = None
        if ctx.needs_input_grad[0] and book.mirrored:
            to_features = _gather_multiply(gradient, weight.flip(1).permute(2, 1, 0), book)
        elif ctx.needs_input_grad[0]:
            to_features = _multiply_scatter(gradient, weight, book)
        if ctx.needs_input_grad[1]:
            to_weight = _correlate(gradient, features, book).to(weight.dtype)
        return to_features, to_weight, None


def _gather_multiply(rows: Tensor, weight: Tensor, book: Rulebook) -> Tensor:
    """Return (V_out, Cout): the sum over weights of rows[table] @ weight."""
    padded = _padded(rows)
    answer = rows.new_empty((len(book.table), len(weight)))
    for share in _shares(book, rows.shape[1]):
        matrix = weight[:, share.weights].flatten(1).contiguous()
        for first, gathered in _blocks(padded, share.table):
            block = slice(first, first + len(gathered))
            if share.rows is None:
                answer[block] = _multiply(gathered, matrix)
            else:
                answer.index_copy_(0, share.rows[block], _multiply(gathered, matrix))
    return answer


def _multiply_scatter(gradient: Tensor, weight: Tensor, book: Rulebook) -> Tensor:
    """Return (V_in, Cin): output gradients brought back to the inputs, weight by weight; the order
    of each sum is fixed.
    """
    wide = _accumulator(gradient.dtype)
    answer = gradient.new_zeros((book.sites, weight.shape[2]), dtype=wide)
    for number in range(weight.shape[1]):
        inputs, outputs = book.meetings(number)  # no input occurs twice, so nothing races
        answer.index_add_(
            0, inputs, (gradient.index_select(0, outputs) @ weight[:, number]).to(wide)
        )
    return answer.to(gradient.dtype)


def _correlate(gradient: Tensor, features: Tensor, book: Rulebook) -> Tensor:
    """Return (Cout, K, Cin): the weights' gradient, summed block by block."""
    padded, channels = _padded(features), features.shape[1]
    answer = gradient.new_zeros(
        (gradient.shape[1], book.table.shape[1], channels), dtype=_accumulator(gradient.dtype)
    )
    for share in _shares(book, channels):
        theirs = gradient if share.rows is None else gradient.index_select(0, share.rows)
        part = torch.zeros_like(answer[:, share.weights]).flatten(1)
        done = 0
        for first, gathered in _blocks(padded, share.table):
            fresh = done - first  # the last block overlaps the one before
            part += (theirs[done : first + len(gathered)].t() @ gathered[fresh:]).to(part.dtype)
            done = first + len(gathered)
        answer[:, share.weights] += part.view(len(part), -1, channels)
    return answer


def _shares(book: Rulebook, channels: int) -> tuple[Share, ...]:
    """Return the parts in which to go through a rulebook; for narrow rows, sorting costs more than
    multiplying zeros.
    """
    return book.shares if channels >= _WIDE else (book.whole,)


def _padded(rows: Tensor) -> Tensor:
    """Return the rows and one of zeros, for those that are not there."""
    return torch.cat((rows, rows.new_zeros((1, rows.shape[1]))))


def _accumulator(kind: torch.dtype) -> torch.dtype:
    return torch.float32 if kind in (torch.float16, torch.bfloat16) else kind


def _blocks(padded: Tensor, table: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield a block's first row of the table and its gathered inputs (n, K * C), to be used before
    the next is asked for.

    All blocks have one size, the last begins earlier to fill it: oneDNN compiles a kernel for every
    new size.
    """
    sites, weights = table.shape
    channels = padded.shape[1]
    most = _CACHED if padded.device.type == "cpu" else _LARGE
    size = min(
        sites // _BLOCK * _BLOCK or sites,
        max(most // max(weights * channels, 1), 1) // _BLOCK * _BLOCK + _BLOCK,
    )
    buffer = padded.new_empty((size * weights, channels))
    for first in range(0, sites, max(size, 1)):
        first = min(first, sites - size)
        torch.index_select(padded, 0, table[first : first + size].flatten(), out=buffer)
        yield first, buffer.view(size, weights * channels)


def _multiply(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows @ matrix.T.

    In float32 on a processor, torch multiplies matrices with MKL but convolves with oneDNN, which
    is twice as fast on AMD's and as fast on Intel's; so the rows become the pixels of some images
    and the product a convolution of one pixel. (Of 16 images: with fewer, torch does not ask oneDNN
    on one thread.)
    """
    count, inputs = rows.shape
    if (
        rows.device.type != "cpu"
        or rows.dtype != torch.float32
        or count % _BLOCK
        or not torch.backends.mkldnn.is_available()
    ):
        return rows @ matrix.t()
    images = rows.view(_IMAGES, count // _IMAGES, 1, inputs).permute(0, 3, 1, 2)
    return (
        F.conv2d(images, matrix[:, :, None, None]).permute(0, 2, 3, 1).reshape(count, len(matrix))
    )
