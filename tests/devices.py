"""The same tests on an accelerator: what a test makes lies there, what the package makes lies where
the package puts it.

A test writes ``torch.tensor(...)`` and compares with ``numpy`` arrays. On an accelerator its
tensors and modules are made on the CPU as always, from the same random numbers, and moved; reading
one back brings it to the CPU. Calls that stand in the package are left alone, so that a tensor it
makes on the wrong device is a mistake as for a user.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

TESTS = str(Path(__file__).parent)
MAKES = {*_device_constructors(), torch.from_numpy}
READS = {torch.Tensor.numpy, torch.Tensor.__array__}


def accelerators() -> list[str]:
    """Where tests of torch can run beside the CPU; empty on most machines."""
    return (
        [torch.accelerator.current_accelerator().type] if torch.accelerator.is_available() else []
    )


class Made(TorchFunctionMode):
    """Moves tensors that a test makes, and reads them back."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        from_test = sys._getframe(1).f_code.co_filename.startswith(TESTS)
        if function in READS and args[0].device.type != "cpu":
            return function(args[0].detach().cpu(), *args[1:], **kwargs)
        made = function(*args, **kwargs)
        if (
            from_test
            and function in MAKES
            and kwargs.get("device") is None
            and isinstance(made, torch.Tensor)
        ):
            return made.detach().to(self.device).requires_grad_(made.requires_grad)
        return made


@contextlib.contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Let tests make their tensors and modules on a device."""

    def parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> nn.Parameter | None:
        return (
            None if value is None else nn.Parameter(value.detach().to(device), value.requires_grad)
        )

    def buffer(module: nn.Module, name: str, value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.to(device)

    hooks = (
        registration.register_module_parameter_registration_hook(parameter),
        registration.register_module_buffer_registration_hook(buffer),
    )
    try:
        with Made(device):
            yield
    finally:
        for hook in hooks:
            hook.remove()
