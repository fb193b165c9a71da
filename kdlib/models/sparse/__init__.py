"""3D convolution over the occupied voxels only, through whichever backend there is."""

from __future__ import annotations

from kdlib.models.sparse.conv import SparseConv3d, SparseConvolution, SubmConv3d, use_backend
from kdlib.models.sparse.rulebook import Geometry, strided_rulebook, submanifold_rulebook
from kdlib.models.sparse.tensor import Rulebooks, SparseTensor

__all__ = [
    "Geometry",
    "Rulebooks",
    "SparseConv3d",
    "SparseConvolution",
    "SparseTensor",
    "SubmConv3d",
    "strided_rulebook",
    "submanifold_rulebook",
    "use_backend",
]
