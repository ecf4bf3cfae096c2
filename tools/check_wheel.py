"""Installs the wheel of dist into an empty environment and runs what a newcomer runs first.

`python tools/check_wheel.py [--all | PYTHON …]`: one environment for each interpreter, by default for the one that runs
this; `--all`: for every Python from 3.11 on that is on the PATH. Dependencies come under constraints.txt.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ESSENCE = """
import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy

import patterning as pt

draw = torch.Generator().manual_seed(0)
x = torch.randn(260, 5, generator=draw)
y = (x[:, 0] > 0).long()


def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def on_ones(model):
    rows = 200 + (y[200:] == 1).nonzero()[:, 0]
    return cross_entropy(model(x[rows]), y[rows])


def train(weights, seed):
    return pt.fit(task, weights, seed, steps=60, learning_rate=1e-2)


if __name__ == "__main__":
    task = pt.Task(Linear(5, 2), loss, (x[:200], y[:200]))
    sampler = pt.SGLD(100, 300, 3e-4)
    chi = pt.measure(
        task, {"ones": on_ones}, sampler=sampler, at=train(None, 9), draws=20, steps_between_draws=10, budget=1
    )
    rho = chi.invert({"ones": -1}).weights(0.25)
    check = pt.verify(train, {"fewer": rho}, {"ones": on_ones}, seeds=range(6))
    check.show()
    check.page("report.html")
    assert check.steers("fewer", "ones"), "the weights do not steer"
    print("package:", pt.__file__)
"""


def interpreters(asked: list[str]) -> list[str]:
    """Those that were asked for, this one, or one for each version that is there and runs."""
    if asked != ["--all"]:
        return asked or [sys.executable]
    found = {}
    for name in (sys.executable, *(f"python{version}" for version in VERSIONS)):
        path = shutil.which(name)
        if path is None:
            continue
        query = [path, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip() in VERSIONS:
            found.setdefault(answer.stdout.strip(), path)
    return list(found.values())


def check(python: str, wheel: Path, folder: Path) -> None:
    """One empty environment: the wheel installs, imports from there, answers on the command line, and steers."""
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    own = folder / "venv" / "bin" / "python"
    install = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (folder / "essence.py").write_text(ESSENCE, encoding="utf-8")
    command = [str(own), "essence.py"]
    ran = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    used = ran.stdout.rpartition("package: ")[2].strip()
    if not Path(used).is_relative_to((folder / "venv").resolve()):
        raise SystemExit(f"the package came from {used}, not from the wheel")
    for arguments in (["--help"], ["doctor"]):
        subprocess.run([str(own), "-m", "patterning.cli", *arguments], cwd=folder, env=environment, check=True,
                       stdout=subprocess.PIPE)  # fmt: skip
    if not (folder / "report.html").stat().st_size:
        raise SystemExit("the page is empty")


def main(asked: list[str]) -> None:
    """Check the newest wheel of dist with every interpreter."""
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise SystemExit("dist holds no wheel: make dist builds one")
    for python in interpreters(asked):
        with tempfile.TemporaryDirectory() as folder:
            check(python, wheels[-1], Path(folder))
        print(f"{wheels[-1].name}: installed and run with {python}")


if __name__ == "__main__":
    main(sys.argv[1:])
