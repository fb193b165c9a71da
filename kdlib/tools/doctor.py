"""What this machine can do for kdlib, one line per part, with the exact remedy where one is needed.

Everything that has been seen to crash an interpreter (a renderer without EGL, a wheel built for
another CUDA) is tried in a child process, so the examination itself always ends.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
import typer

Status = Literal["ok", "warn", "fail"]

INSTALL = (
    "make clean && make test, or pip install -c .ci/constraints.txt -e "
    "'.[cpu,dev,browser,export,tensorboard]'"
)
GPU_INSTALL = "conda env create -f environment.yml"


@dataclass(frozen=True)
class Check:
    """One part of the machine: ``fail`` stops the demo, ``warn`` closes one road."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Probe:
    """How a child process ended."""

    values: dict[str, Any] | None  # what it printed, None where it failed
    reason: str  # why it failed


def probe(code: str, seconds: float = 120.0) -> Probe:
    """Run Python code that prints one JSON object on its last line, in a child process that may
    crash.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(None, f"no answer within {seconds:.0f} s")
    if child.returncode < 0:
        return Probe(None, f"the process was ended by {signal.Signals(-child.returncode).name}")
    last = [
        "no output",
        *(child.stderr if child.returncode else child.stdout).strip().splitlines(),
    ][-1]
    if child.returncode:
        return Probe(None, last[:160])
    try:
        return Probe(json.loads(last), "")
    except ValueError:
        return Probe(None, f"unexpected answer '{last[:120]}'")


_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
print(json.dumps({
    "version": torch.__version__, "threads": torch.get_num_threads(),
    "cuda": torch.version.cuda or "",
    "sum": float(torch.ones(8).sum()), "gpus": [[p.name, p.total_memory / 2**30] for p in gpus],
}))
"""

_SPCONV = """
import json, torch, spconv
from spconv import pytorch
print(json.dumps({"version": getattr(spconv, "__version__", "?")}))
"""

_OPEN3D = """
import json, open3d as o3d
scene = o3d.t.geometry.RaycastingScene()
scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(o3d.geometry.TriangleMesh.create_sphere(1.0)))
ray = o3d.core.Tensor([[0, 0, -5, 0, 0, 1.0]], dtype=o3d.core.Dtype.Float32)
hit = float(scene.cast_rays(ray)["t_hit"][0].item())
print(json.dumps({"version": o3d.__version__, "hit": hit}))
"""

_RENDER = """
import os
os.environ.setdefault("EGL_PLATFORM", "surfaceless")
import json, numpy as np, open3d as o3d
from open3d.visualization import rendering
renderer = rendering.OffscreenRenderer(64, 64)
material = rendering.MaterialRecord()
material.shader = "defaultUnlit"
sphere = o3d.geometry.TriangleMesh.create_sphere(1.0).paint_uniform_color([1.0, 0.0, 0.0])
renderer.scene.add_geometry("sphere", sphere, material)
renderer.setup_camera(60.0, [0, 0, 0], [0, 0, 3], [0, 1, 0])
print(json.dumps({"contrast": float(np.asarray(renderer.render_to_image()).std())}), flush=True)
os._exit(0)
"""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def check_python() -> Check:
    """Python's own version."""
    python = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info[:2] > (3, 12):
        return Check(
            "Python",
            "warn",
            f"{python}: open3d 0.19 has no wheels for it",
            "make clean && make test PYTHON=python3.12",
        )
    return Check("Python", "ok", python)


def check_torch(seen: Probe) -> Check:
    """That torch computes, with its threads."""
    if seen.values is None:
        return Check("torch", "fail", seen.reason, INSTALL)
    build = f"CUDA {seen.values['cuda']}" if seen.values["cuda"] else "CPU build"
    return Check(
        "torch", "ok", (f"{seen.values['version']} ({build}), {seen.values['threads']} threads")
    )


def check_gpu(seen: Probe) -> Check:
    """GPUs that torch can use, or what follows from having none."""
    values = seen.values or {}
    if values.get("gpus"):
        return Check(
            "GPU", "ok", ", ".join(f"{name} {size:.0f} GiB" for name, size in values["gpus"])
        )
    if not shutil.which("nvidia-smi"):
        none = (
            "none: demo, tests and pictures run on the CPU; the waymo20 and waymo100 profiles "
            "are meant for a GPU"
        )
        return Check(
            "GPU", "warn", none, (f"for those, on a machine with an NVIDIA GPU: {GPU_INSTALL}")
        )
    if values.get("cuda"):
        return Check(
            "GPU",
            "warn",
            "a driver is installed, but torch sees no GPU",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    return Check("GPU", "warn", "a driver is installed, but torch is a CPU build", GPU_INSTALL)


def check_sparse(gpu: bool) -> Check:
    """Sparse convolution by spconv, which no pillar model needs."""
    installed = next(
        (name for name in ("spconv-cu118", "spconv-cu120", "spconv") if _version(name)), ""
    )
    if not installed:
        remedy = "pip install spconv-cu118==2.3.8" if gpu else "nothing to do without a GPU"
        return Check("spconv", "warn", "not installed: the pillar models need none", remedy)
    seen = probe(_SPCONV)
    if seen.values is None:
        remedy = "pip install --force-reinstall spconv-cu118==2.3.8"
        return Check("spconv", "warn", f"{installed} does not import: {seen.reason}", remedy)
    return Check(
        "spconv",
        "ok",
        f"{installed} {_version(installed)}"
        + ("" if gpu else ", but no GPU: it cannot train on a CPU"),
    )


def check_open3d() -> Check:
    """That open3d casts rays, which the simulator is made of."""
    if _version("open3d") and _version("open3d-cpu"):
        remedy = "pip uninstall -y open3d open3d-cpu && pip install open3d-cpu==0.19.0"
        return Check(
            "open3d",
            "warn",
            ("open3d and open3d-cpu are both installed and own the same module"),
            remedy,
        )
    seen = probe(_OPEN3D)
    if seen.values is None:
        return Check(
            "open3d",
            "fail",
            f"the simulator's ray casting fails: {seen.reason}",
            "pip install open3d-cpu==0.19.0",
        )
    return Check("open3d", "ok", f"{seen.values['version']}, ray casting works")


def check_rendering() -> Check:
    """That open3d draws without a display."""
    seen = probe(_RENDER)
    if seen.values is not None and seen.values["contrast"] >= 1.0:
        return Check("3D rendering", "ok", "offscreen (EGL)")
    trouble = (
        f"no offscreen rendering: {seen.reason}"
        if seen.values is None
        else "offscreen pictures come out blank"
    )
    remedy = (
        "apt-get install libegl1 libgl1 libgomp1; until then 3D pictures are drawn with "
        "matplotlib and say so"
    )
    return Check("3D rendering", "warn", trouble, remedy)


def check_waymo() -> Check:
    """The official Waymo package, kdlib's second opinion."""
    version = _version("waymo-open-dataset-tf-2-11-0")
    if version:
        return Check("Waymo package", "ok", f"waymo-open-dataset-tf-2-11-0 {version}")
    missing = "not installed: kdlib reads Waymo files and computes the metric without it"
    remedy = f"for the official numbers too, in a Python 3.10 of its own: {GPU_INSTALL}"
    if sys.version_info[:2] == (3, 10):
        remedy = "for the official numbers too: pip install waymo-open-dataset-tf-2-11-0==1.6.1"
    return Check("Waymo package", "warn", missing, remedy)


def check_kernel() -> Check:
    """That a Jupyter kernel named python3 runs this very Python."""
    remedy = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError as error:
        return Check("Jupyter kernel", "fail", f"jupyter does not import: {error}", INSTALL)
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("Jupyter kernel", "fail", "no kernel named python3", remedy)
    # A bare "python" is replaced by the running interpreter when the kernel starts.
    if Path(command).is_absolute() and Path(command).absolute() != Path(sys.executable).absolute():
        return Check("Jupyter kernel", "warn", f"the kernel python3 runs {command}", remedy)
    return Check("Jupyter kernel", "ok", "python3")


def check_disk() -> Check:
    """Room for the demo, and for Waymo."""
    free = shutil.disk_usage(".").free / 1e9
    room = f"{free:.0f} GB free here; environment and demo want 5 GB, Waymo's LiDAR files 213 GB"
    if free < 5:
        return Check(
            "Disk",
            "fail" if free < 2 else "warn",
            room,
            ("make room, or run with --out on another disk"),
        )
    return Check("Disk", "ok", room)


def check_memory() -> Check:
    """Memory for the demo, which stays below 8 GB."""
    memory = psutil.virtual_memory()
    room = (
        f"{memory.total / 1e9:.0f} GB, {memory.available / 1e9:.0f} GB available; the demo "
        "needs up to 8 GB"
    )
    if memory.available < 8e9:
        return Check("Memory", "warn", room, "close other programs before make demo")
    return Check("Memory", "ok", room)


def examine() -> list[Check]:
    """Examine this machine; takes some seconds, changes nothing."""
    torch = probe(_TORCH)
    gpu = check_gpu(torch)
    first = [check_python(), check_torch(torch), gpu, check_sparse(gpu.status == "ok")]
    return first + [
        check()
        for check in (
            check_open3d,
            check_rendering,
            check_waymo,
            check_kernel,
            check_disk,
            check_memory,
        )
    ]


def checks_text(checks: Sequence[Check]) -> str:
    """Return one coloured line per check, and its remedy."""
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    return "\n".join(
        f"{typer.style(f'{check.status:4}', colours[check.status])} {check.name:14} {check.found}"
        + (f" -> {check.remedy}" if check.remedy else "")
        for check in checks
    )
