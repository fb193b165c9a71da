"""The card says what a time was measured on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kdlib import records
from kdlib.profiling.hardware import hardware_card


def test_card_of_this_machine() -> None:
    found = hardware_card(torch.device("cpu"))
    assert found["cpu"] and found["device"] == found["cpu"]
    assert 1 <= found["cores"] and found["threads"] == torch.get_num_threads()
    assert hardware_card() == found
    assert found["memory_gb"] > 0.5
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert json.loads(json.dumps(found)) == found


def test_card_names_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(get_device_name=lambda device: "Board"))
    monkeypatch.setattr(records, "_accelerators", lambda: ("Board, 8192 MiB, 520.1",))
    found = hardware_card(torch.device("cuda"))
    assert found["device"] == "Board" and found["gpus"] == ["Board, 8192 MiB, 520.1"]
