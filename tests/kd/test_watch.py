from __future__ import annotations

import pytest
import torch

from kdlib.errors import ConfigError
from kdlib.kd.watch import ZeroWatch


def test_fifty_zeros_in_a_row_are_an_error():
    watch = ZeroWatch()
    for _ in range(49):
        watch.see({"kd_heatmap": torch.tensor(1.0), "kd_box": torch.tensor(0.0)})
    with pytest.raises(ConfigError, match="'kd_box' is enabled but was exactly 0 for the last 50 steps"):
        watch.see({"kd_heatmap": torch.tensor(1.0), "kd_box": torch.tensor(0.0)})


def test_one_value_in_between_starts_the_count_again():
    watch = ZeroWatch(5)
    for step in range(14):
        watch.see({"kd_heatmap": torch.tensor(1e-9 if step in (4, 9) else 0.0)})
    with pytest.raises(ConfigError, match="last 5 steps"):
        watch.see({"kd_heatmap": torch.tensor(0.0)})
