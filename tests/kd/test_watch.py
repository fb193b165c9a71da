from __future__ import annotations

import pytest
import torch

from kdlib.errors import ConfigError
from kdlib.kd.report import ZeroWatch


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


@pytest.mark.parametrize("name", ["kd_heatmap", "kd_rank", "kd_box", "kd_feature", "kd_relation", "kd_mine"])
def test_every_term_is_watched_on_its_own(name):
    watch = ZeroWatch(3)
    others = {other: torch.tensor(1.0) for other in ("kd_heatmap", "kd_other")}
    with pytest.raises(ConfigError, match=f"term '{name}' is enabled"):
        for _ in range(3):
            watch.see({**others, name: torch.tensor(0.0)})


def test_a_term_that_is_no_number_is_no_zero():
    watch = ZeroWatch(2)
    for _ in range(4):
        watch.see({"kd_heatmap": torch.tensor(float("nan"))})


def test_values_keep_their_graph_and_are_not_changed():
    value = torch.zeros((), requires_grad=True)
    watch = ZeroWatch()
    watch.see({"kd_box": value})
    assert value.item() == 0 and not any(count.requires_grad for count in watch.zeros.values())
