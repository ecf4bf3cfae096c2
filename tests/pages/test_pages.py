"""Every kind of page in headless Chromium: at desktop and phone width, light and dark.

No error in the console, no request to anywhere, no sideways scroll of the body, no serious finding of axe-core, under
2 MB, and what scrolls can be reached by the keyboard. `make pages` runs it. PATTERNING_PAGES_SHOTS names a folder for
screenshots; PATTERNING_PAGES names finished pages to look at as well, separated by colons.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import patterning as pt
from patterning.experiments.registry import find_experiment
from patterning.experiments.superposition.experiment import PRESETS

pytestmark = [pytest.mark.pages, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
LARGEST = 2_000_000
KINDS = ("measure", "components", "verify", "superposition", "induction")
GIVEN = tuple(path for path in os.environ.get("PATTERNING_PAGES", "").split(":") if path)


def loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def small_task() -> tuple[pt.Task, torch.Tensor, torch.Tensor]:
    x = torch.randn(160, 64, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).long()
    net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    return pt.Task(net, loss, (x[:120], y[:120])), x[120:], y[120:]


def measured(folder: Path, kind: str) -> Path:
    task, x, y = small_task()
    trained = pt.fit(task, None, 0, steps=60, learning_rate=1e-2)
    wanted: dict[str, Any] = (
        {"observables": {"held out": lambda model: cross_entropy(model(x), y)}}
        if kind == "measure"
        else {"components": ["0.*", "2.*"], "probes": range(20)}
    )
    chi = pt.measure(task, sampler=pt.SGLD(30, 300, 1e-3), at=trained, draws=8, budget=1, progress=False, **wanted)
    chi.page(folder / "page.html")
    return folder / "page.html"


def verified(folder: Path) -> Path:
    task, x, y = small_task()
    chi = pt.measure(
        task, {"loss": lambda model: cross_entropy(model(x), y)}, sampler=pt.SGLD(30, 300, 1e-3), draws=8, budget=1,
        at=pt.fit(task, None, 9, steps=60, learning_rate=1e-2), progress=False,
    )  # fmt: skip
    rho = chi.invert({"loss": -1}).weights(0.25, force=True)
    measures = {
        "loss": lambda model: cross_entropy(model(x), y).detach(),
        "accuracy on the held-out rows": lambda model: (model(x).argmax(1) == y).float().mean(),
    }
    train = lambda weights, seed: pt.fit(task, weights, seed, steps=30, learning_rate=1e-2)  # noqa: E731
    pt.verify(train, {"less loss on held-out rows": rho}, measures, seeds=range(6)).page(folder / "page.html")
    return folder / "page.html"


def studied(folder: Path, name: str) -> Path:
    found = find_experiment(name)
    if name == "superposition":
        sampling = PRESETS["demo"]["sampling"] | {"chains": 8, "steps": 500, "burn_in": 100}
        toy = PRESETS["demo"] | {"preset": "toy", "train": {"steps": 300}, "sampling": sampling, "pilots": 12,
                                 "seeds": 10, "permuted_draws": 2, "force": True}  # fmt: skip
        config = found.load(toy, "toy")
    else:
        config = found.preset("tiny")
    found.run(config, folder / "run", workers=1)
    return folder / "run" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((shutil.which(name) for name in BROWSERS if shutil.which(name)), None)
    if path is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module", params=[*KINDS, *GIVEN])
def page_file(request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del browser  # skips before anything is computed
    kind, folder = request.param, tmp_path_factory.mktemp("page")
    if kind in GIVEN:
        return Path(kind)
    if kind in ("measure", "components"):
        return measured(folder, kind)
    return verified(folder) if kind == "verify" else studied(folder, kind)


def test_a_page_is_under_two_megabytes(page_file: Path) -> None:
    assert page_file.stat().st_size < LARGEST


def test_the_check_finds_what_is_wrong(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_content(
        "<p style='color:#bbb;background:#fff'>pale</p><img src='data:,'><div style='width:900px'>wide</div>"
    )
    names = {one["id"] for one in axe_module.Axe().run(page).response["violations"]}
    assert {"color-contrast", "image-alt"} <= names
    assert page.evaluate("document.documentElement.scrollWidth") > 390
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_page_in_a_browser(
    page_file: Path, browser: Any, size: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, said, asked = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(page_file.as_uri())
    if shots := os.environ.get("PATTERNING_PAGES_SHOTS"):
        name = request.node.callspec.params["page_file"].strip("/").replace("/", "-")
        page.screenshot(path=f"{shots}/{name}-{size}-{scheme}.png")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    inner, whole = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    found = axe_module.Axe().run(page).response["violations"]
    serious = [
        f"{one['id']} ({one['impact']}), {len(one['nodes'])} times: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    context.close()
    assert not said
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert whole <= inner, f"the body scrolls sideways: {whole} > {inner}"
    assert not serious
    assert (background == "rgb(20, 23, 26)") == (scheme == "dark")
