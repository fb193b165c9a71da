"""Each finding has its remedy, and nothing that crashes takes the doctor with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from click import unstyle

from kdlib.tools import doctor
from kdlib.tools.doctor import Check, Probe

LOST = Probe(None, "the process was ended by SIGSEGV")


def torch_probe(**changes: object) -> Probe:
    return Probe({"version": "2.13.0", "threads": 2, "cuda": "", "gpus": [], **changes}, "")


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Probe], Any]:
    """``f(PROBE)``: the doctor, whose children all end like this."""

    def changed(seen: Probe) -> Any:
        monkeypatch.setattr(doctor, "probe", lambda code: seen)
        return doctor

    return changed


def test_probe_survives_whatever_its_child_does() -> None:
    assert doctor.probe("print('noise'); print('{\"a\": 1}')") == Probe({"a": 1}, "")
    assert doctor.probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == LOST
    assert "No module named 'nowhere'" in doctor.probe("import nowhere").reason
    assert "unexpected answer" in doctor.probe("print('hello')").reason
    assert doctor.probe("import time; time.sleep(9)", seconds=0.2).reason == "no answer within 0 s"


def test_this_machine_can_run_the_demo() -> None:
    found = doctor.examine()
    assert [check.name for check in found if check.status == "fail"] == []
    names = [
        "Python",
        "torch",
        "GPU",
        "spconv",
        "open3d",
        "3D rendering",
        "Waymo package",
        "Jupyter kernel",
        "Disk",
        "Memory",
    ]
    assert [check.name for check in found] == names
    assert all(check.remedy for check in found if check.status != "ok")
    assert all("\n" not in check.found + check.remedy for check in found)


def test_torch_that_does_not_import_stops_the_demo() -> None:
    check = doctor.check_torch(LOST)
    assert check.status == "fail" and "SIGSEGV" in check.found and "constraints" in check.remedy
    assert doctor.check_torch(torch_probe()).found == "2.13.0 (CPU build), 2 threads"


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "CPU" in doctor.check_gpu(torch_probe()).found
    assert doctor.check_gpu(LOST).status == "warn"
    there = doctor.check_gpu(torch_probe(cuda="11.8", gpus=[["Board", 47.5]]))
    assert there == Check("GPU", "ok", "Board 48 GiB")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "CPU build" in doctor.check_gpu(torch_probe()).found
    assert "CUDA_VISIBLE_DEVICES" in doctor.check_gpu(torch_probe(cuda="11.8")).remedy


def test_spconv(monkeypatch: pytest.MonkeyPatch, answering: Callable[[Probe], Any]) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    assert "pip install" in doctor.check_sparse(True).remedy
    assert "without a GPU" in doctor.check_sparse(False).remedy
    monkeypatch.setattr(doctor, "_version", lambda name: "2.3.8")
    broken = answering(LOST).check_sparse(True)
    assert (
        broken.status == "warn" and "SIGSEGV" in broken.found and "force-reinstall" in broken.remedy
    )
    assert answering(Probe({}, "")).check_sparse(True) == Check(
        "spconv", "ok", ("spconv-cu118 2.3.8")
    )
    assert "cannot train" in answering(Probe({}, "")).check_sparse(False).found


def test_open3d(monkeypatch: pytest.MonkeyPatch, answering: Callable[[Probe], Any]) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "0.19.0")
    assert "uninstall" in doctor.check_open3d().remedy
    monkeypatch.setattr(doctor, "_version", lambda name: "0.19.0" if name == "open3d-cpu" else "")
    assert answering(LOST).check_open3d().status == "fail"
    assert answering(Probe({"version": "0.19.0"}, "")).check_open3d().status == "ok"


def test_rendering_that_crashes_or_stays_blank_closes_one_road_only(
    answering: Callable[[Probe], Any],
) -> None:
    assert answering(LOST).check_rendering().status == "warn"
    assert "matplotlib" in answering(LOST).check_rendering().remedy
    assert "blank" in answering(Probe({"contrast": 0.0}, "")).check_rendering().found


def test_waymo_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 13))
    assert "pip install" in doctor.check_waymo().remedy
    monkeypatch.setattr(doctor.sys, "version_info", (3, 11, 7))
    assert "Python 3.10" in doctor.check_waymo().remedy
    monkeypatch.setattr(doctor, "_version", lambda name: "1.6.1")
    assert doctor.check_waymo().status == "ok"


def test_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client import kernelspec

    def manager(command: str) -> type:
        class Manager:
            def get_kernel_spec(self, name: str) -> SimpleNamespace:
                if not command:
                    raise kernelspec.NoSuchKernel(name)
                return SimpleNamespace(argv=[command])

        return Manager

    for command, status in (
        ("", "fail"),
        ("/elsewhere/python", "warn"),
        (sys.executable, "ok"),
        ("python", "ok"),
    ):
        monkeypatch.setattr(kernelspec, "KernelSpecManager", manager(command))
        check = doctor.check_kernel()
        assert check.status == status
        assert ("ipykernel install" in check.remedy) == (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(1e9, "fail"), (4e9, "warn"), (80e9, "ok")])
def test_disk(free: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert doctor.check_disk().status == status


@pytest.mark.parametrize(("available", "status"), [(4e9, "warn"), (20e9, "ok")])
def test_memory(available: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=32e9, available=available)
    )
    assert doctor.check_memory().status == status


def test_text_has_a_line_each() -> None:
    checks = [
        Check("Disk", "warn", "[4 GB] free", "make room"),
        Check("torch", "ok", "2.13.0 " + "x" * 200),
    ]
    lines = unstyle(doctor.checks_text(checks)).splitlines()
    assert len(lines) == 2
    assert lines[0].split() == "warn Disk [4 GB] free -> make room".split()
