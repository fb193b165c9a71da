"""The card says what a time was measured on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kdlib import provenance
from kdlib.profiling.hardware import hardware_card


def test_card_of_this_machine() -> None:
    card = hardware_card(torch.device("cpu"))
    assert card.cpu and card.device == card.cpu
    assert 1 <= card.cores and card.threads == torch.get_num_threads()
    assert card.memory_gb > 0.5
    assert card.versions["torch"] == torch.__version__
    assert json.loads(json.dumps(card.to_dict()))["system"] == card.system


def test_card_names_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(get_device_name=lambda device: "Board"))
    monkeypatch.setattr(provenance, "_accelerators", lambda: ("Board, 8192 MiB, 520.1",))
    card = hardware_card(torch.device("cuda"))
    assert card.device == "Board" and card.gpus == ("Board, 8192 MiB, 520.1",)
    assert str(card).startswith("Board, torch ")
