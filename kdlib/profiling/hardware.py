"""Describes the machine a time was measured on, because milliseconds without it mean nothing."""

from __future__ import annotations

from typing import Any

import torch

from kdlib import records


def hardware_card(device: torch.device | None = None) -> dict[str, Any]:
    """Return the card of this machine for a model on ``device``, torch's default one if None.

    Returns:
        ``device`` (where the model ran: the GPU's name, or the CPU's), ``cpu``, ``cores`` this
        process may use, torch's ``threads``, ``memory_gb``, ``gpus``, the ``cuda`` torch was built
        for, ``versions`` and ``system``.
    """
    device = device or torch.empty(0).device
    machine = records.hardware()
    backend: Any = getattr(torch, device.type, None)
    name = (
        backend.get_device_name(device) if hasattr(backend, "get_device_name") else machine["cpu"]
    )
    torch_facts = {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "",
        "versions": records.versions(),
    }
    return {"device": name, **machine, **torch_facts}
