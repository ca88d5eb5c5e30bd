"""What is compared has to be there first: Go programs are built, other libraries installed, entry points made up.

All of it is kept in the user's cache folder, so that only the first run waits for it.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUP = "hybridload.benchmarks"
INSTALLED = 200


class Missing(Exception):
    """Something cannot be compared here; the message says why."""


def cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "hybridload-benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(**added: str) -> dict[str, str]:
    """What a worker runs in: bytecode is compiled, as it is where plugins are used, and nothing else is set for it."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "HYBRIDLOAD_ENGINE")
    return {**{key: value for key, value in os.environ.items() if key not in unwanted}, **added}


def compile_bytecode() -> None:
    for folder in ("hybridload", "benchmarks"):
        compileall.compile_dir(str(ROOT / folder), quiet=1)


def go_program(name: str) -> str:
    """Build one of `tests/go`.

    :raises Missing: there is no Go, or it does not build.
    """
    go = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if go is None:
        raise Missing("Go is not installed")
    target = cache_folder() / name
    command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(target), f"./{name}"]
    built = subprocess.run(
        command, cwd=ROOT / "tests" / "go", env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True
    )
    if built.returncode:
        raise Missing(f"it does not build: {built.stderr.strip()[-300:]}")
    return str(target)


def peer_python(package: str) -> str:
    """The interpreter of an environment in which a package from PyPI is installed.

    :raises Missing: it cannot be installed.
    """
    folder = cache_folder() / package
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=120)
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
            subprocess.run(command, check=True, capture_output=True, timeout=240, env=environment())
        except subprocess.CalledProcessError as error:
            raise Missing(f"pip: {error.stderr.decode(errors='replace').strip()[-200:]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Missing(str(error)) from error
        done.touch()
    return str(python)


def many_entry_points() -> str:
    """A folder for the path with `INSTALLED` distributions, one entry point each; the name of any is ``plugin-N``."""
    site = cache_folder() / f"site-{INSTALLED}"
    done = site / "made"
    if not done.exists():
        shutil.rmtree(site, ignore_errors=True)
        for number in range(INSTALLED):
            info = site / f"benchmark_plugin_{number}-1.0.dist-info"
            info.mkdir(parents=True)
            name = f"benchmark-plugin-{number}"
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\nText.\n" * 2)
            entry = f"plugin-{number} = benchmark_plugin_{number}:Greeter"
            (info / "entry_points.txt").write_text(f"[console_scripts]\nx{number} = x:y\n\n[{GROUP}]\n{entry}\n")
            source = "class Greeter:\n    def greet(self) -> str:\n        return 'hello'\n"
            (site / f"benchmark_plugin_{number}.py").write_text(source)
        compileall.compile_dir(str(site), quiet=1)
        done.touch()
    return str(site)
