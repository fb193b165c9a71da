from __future__ import annotations

import torch

from kdlib.models.voxel_encoder import MeanEncoder
from kdlib.types import VoxelBatch


def test_mean_of_the_stored_points_by_hand():
    features = torch.zeros(3, 4, 2)
    features[0, :3] = torch.tensor([[1.0, 5], [2, 6], [6, 1]])
    features[1, 0] = torch.tensor([7.0, -2])
    voxels = VoxelBatch(features, torch.zeros(3, 4, dtype=torch.long), torch.tensor([3, 1, 0]), 1)
    before = features.clone()
    assert torch.equal(MeanEncoder()(voxels), torch.tensor([[3.0, 4], [7, -2], [0, 0]]))
    assert torch.equal(features, before) and not MeanEncoder().state_dict()


def test_no_voxels():
    voxels = VoxelBatch(
        torch.zeros(0, 5, 5),
        torch.zeros(0, 4, dtype=torch.long),
        torch.zeros(0, dtype=torch.long),
        1,
    )
    assert MeanEncoder()(voxels).shape == (0, 5)
