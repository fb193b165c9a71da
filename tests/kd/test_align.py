from __future__ import annotations

import numpy as np
import pytest
import torch

from kdlib.kd.align import align_maps


def naive(maps, size, align_corners):
    """Bilinear resampling, output cell by output cell."""
    h, w = maps.shape[-2:]
    out = np.zeros((*maps.shape[:2], *size))
    for oy, ox in np.ndindex(*size):
        at = []
        for o, n_out, n_in in ((oy, size[0], h), (ox, size[1], w)):
            where = (
                o * (n_in - 1) / (n_out - 1)
                if align_corners
                else max((o + 0.5) * n_in / n_out - 0.5, 0)
            )
            low = min(int(where), n_in - 1)
            at.append((low, min(low + 1, n_in - 1), where - low))
        (y0, y1, fy), (x0, x1, fx) = at
        top = maps[..., y0, x0] * (1 - fx) + maps[..., y0, x1] * fx
        bottom = maps[..., y1, x0] * (1 - fx) + maps[..., y1, x1] * fx
        out[..., oy, ox] = top * (1 - fy) + bottom * fy
    return out


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (2, 3), (6, 9)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_b1_align_corners_is_obeyed(size, align_corners):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    got = align_maps(torch.from_numpy(maps), size, align_corners=align_corners)
    np.testing.assert_allclose(got, naive(maps, size, align_corners), atol=1e-12)


def test_b1_the_two_settings_differ():
    maps = torch.rand(1, 1, 3, 3)
    assert not torch.allclose(
        align_maps(maps, (6, 6)), align_maps(maps, (6, 6), align_corners=True)
    )


def test_half_pixel_is_exact_for_grids_over_one_range():
    """A map linear in metres stays that line, away from the border, at any cell size."""
    coarse = (torch.arange(8.0) + 0.5) * 0.64
    fine = (torch.arange(16.0) + 0.5) * 0.32
    got = align_maps(coarse.expand(1, 1, 8, 8), (16, 16))
    assert torch.allclose(got[0, 0, 5, 1:-1], fine[1:-1], atol=1e-6)


def test_b6_one_class_keeps_its_channel():
    assert align_maps(torch.rand(2, 1, 4, 4), (8, 8)).shape == (2, 1, 8, 8)


def test_equal_sizes_come_back_untouched():
    maps = torch.rand(2, 3, 4, 5)
    assert align_maps(maps, (4, 5), align_corners=True) is maps


def test_gradcheck():
    maps = torch.rand(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: align_maps(m, (5, 8)), maps)
