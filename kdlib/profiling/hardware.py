"""Nothing goes in; the machine a time was measured on comes out, because milliseconds without it mean nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdlib import records


@dataclass(frozen=True)
class HardwareCard:
    """The machine behind a measured time."""

    device: str  # where the model ran: the GPU's name, or the CPU's
    cpu: str
    cores: int  # cores this process may use
    threads: int  # torch's threads
    memory_gb: float
    gpus: tuple[str, ...]  # name, memory, driver of each GPU of the machine
    cuda: str  # CUDA version torch was built for, empty for a CPU build
    versions: dict[str, str]
    system: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "gpus": list(self.gpus)}

    def __str__(self) -> str:
        """One line for a table's caption."""
        threads = "" if self.device != self.cpu else f", {self.threads} threads"
        return f"{self.device}{threads}, torch {self.versions.get('torch', '?')}"


def hardware_card(device: torch.device | None = None) -> HardwareCard:
    """Return the card of this machine for a model on ``device``, torch's default one if None."""
    device = device or torch.empty(0).device
    found = records.hardware()
    backend: Any = getattr(torch, device.type, None)
    name = backend.get_device_name(device) if hasattr(backend, "get_device_name") else found["cpu"]
    return HardwareCard(
        device=name,
        cpu=found["cpu"],
        cores=found["cores"],
        threads=torch.get_num_threads(),
        memory_gb=found["memory_gb"],
        gpus=tuple(found["gpus"]),
        cuda=torch.version.cuda or "",
        versions=records.versions(),
        system=found["system"],
    )
