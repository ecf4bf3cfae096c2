"""The page of a response: the answer first, the sign in words, samples as text, picture or number, and its size."""

import base64
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import patterning as pt
from patterning.face.response_page import response_page
from patterning.face.sample_views import picture_of, png, with_error
from patterning.face.signs import TITLE, WHICH_SIGN

SHORT = {"draws": 6, "burn_in": 10, "steps_between_draws": 2, "budget": 1, "progress": False, "chains": 2}


VOID = {"meta", "br", "img", "input", "link", "hr"}


class Reader(HTMLParser):
    """The text of a page, and whether its tags close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.open, self.links = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


class Letters:
    """A tokenizer of single letters, one of which must be escaped."""

    def decode(self, tokens: list[int]) -> str:
        return "".join("ab<de f"[token] for token in tokens)


@pytest.fixture(scope="module")
def text_task() -> pt.Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7))
    tokens = torch.randint(7, (12, 9))
    return pt.Task(net, lambda m, b: cross_entropy(m(b[:, :-1]).mT, b[:, 1:], reduction="none"), tokens)


@pytest.fixture(scope="module")
def text_response(text_task: pt.Task) -> pt.Response:
    return pt.measure(text_task, None, ["0.*", "1.*", "3.*"], sampler=pt.SGLD(30, 300, 1e-3), **SHORT)


def pictures() -> pt.Task:
    torch.manual_seed(0)
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return pt.Task(net, lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"), (x, y))


def test_the_answer_comes_first(text_response: pt.Response) -> None:
    page = response_page(text_response.tree, "A title", task=text_response.task, decode=Letters())
    text = Reader(page).text
    best = max(text_response.names, key=lambda name: text_response.reliability[name])
    k = text_response.index(best)
    j = int(np.abs(text_response.chi[k]).argmax())
    chi, width = text_response.chi[k, j], text_response.half_width()[k, j]
    reliability = text_response.reliability[best]
    assert reliability > 0.5
    verb = "raises" if chi > 0 else "lowers"
    lead = (
        f"⟧” (row {text_response.row[j]}, position {text_response.position[j]}) up {verb} the component loss of "
        f"{best} most (χ = {with_error(chi, width)}, 95 % interval), in the clearest of 3 rows of χ (split-half "
        f"reliability {reliability:.2f})"
    )
    assert lead in text
    assert re.search(r"Weighting “.*⟦.⟧” \(row", text)  # by its text first
    assert text.index(lead) < text.index("the samples at both ends") < text.index("Every row of χ with its samples")
    assert [words for words in re.findall("<h2>([^<]*)</h2>", page) if "keep in mind" not in words] == [
        "Every row of χ with its samples", TITLE, "Components", "How alike are the rows?",
        "Spectrum and its noise floor", "Chains", "Settings", "How this was made",
    ]  # fmt: skip
    for part in WHICH_SIGN:
        assert part in text
    for name in text_response.names:
        assert (
            f"{name} around w*. Negative χ (orange): weighting it up lowers ⟨φ⟩; these are the samples that {name}"
            in text
        )
    assert "nβ 30, γ 300, ε 0.001" in text


def test_the_page_stands_alone_and_is_small(text_response: pt.Response, tmp_path: Path) -> None:
    text_response.page(tmp_path / "page.html", decode=Letters())
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 300_000
    assert "plotly" not in page
    assert "<script" not in page
    assert all(link.startswith("data:") for link in Reader(page).links)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert page.count('class="rowchi"') == 3
    assert 'tabindex="0"' in page  # tables that scroll can be scrolled by keys


def test_tokens_are_coloured_by_their_own_chi(text_response: pt.Response) -> None:
    page = response_page(text_response.tree, "t", task=text_response.task, decode=Letters())
    name = text_response.names[0]
    section = page[page.index(f"{name} · reliability") :]
    k = text_response.index(name)
    j = int(text_response.chi[k].argmax())
    row, target = int(text_response.row[j]), int(text_response.position[j]) + 1
    piece = "ab<de f"[int(text_response.task.data[row, target])].replace("<", "&lt;")
    item = section[section.index("raises ⟨φ⟩ most") :].split("</li>")[0]
    assert f"row {row}, position {target - 1}" in item
    assert f'<mark title="{text_response.chi[k, j]:+.3g}" style="background:rgba(31,111,235,' in item
    assert f">{piece}</mark>" in item
    assert "<d" not in re.sub(r"<(div|details)", "", item)  # text is escaped
    coloured = item.count('title="') + item.count("<b>")
    assert coloured == 9  # token 0 has no χ, the other eight have
    assert item.count("<b>") == 1


def test_pictures_are_drawn(tmp_path: Path) -> None:
    task = pictures()
    chi = pt.measure(task, sampler=pt.SGLD(30, 300, 1e-3), batch_size=8, **SHORT)
    page = response_page(chi.tree, "t", task=task)
    images = re.findall(r'<img alt="picture of row (\d+)" src="data:image/png;base64,([^"]+)">', page)
    top = chi.top(1)[0]
    assert images
    (data,) = {data for row, data in images if int(row) == top.row}
    assert pixels_of(base64.b64decode(data)).tolist() == picture_of((task.data[0][[top.row]],)).tolist()
    assert f"label {int(task.data[1][top.row])}" in page
    alone = response_page(chi.tree, "t")  # without its task
    assert "<img" not in alone
    assert f"sample {top.row}" in alone


def pixels_of(data: bytes) -> np.ndarray:
    """A grey PNG as numbers, read by its specification."""
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    lines = zlib.decompress(data[start + 4 : start + 4 + length])
    return np.frombuffer(lines, dtype=np.uint8).reshape(height, width + 1)[:, 1:]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (torch.rand(1, 64), (8, 8)),
        (torch.rand(1, 3, 9, 12), (9, 12, 3)),
        (torch.rand(1, 1, 28, 28), (28, 28)),
        (torch.randint(256, (1, 28, 28), dtype=torch.uint8), (28, 28)),
        (torch.randn(1, 64), None),  # 64 features of either sign are no picture
        (torch.rand(1, 63), None),
        (torch.rand(1, 5, 12), None),
        (torch.rand(1, 4), None),
        (torch.randint(9, (1, 64)), None),  # tokens
    ],
)
def test_what_looks_like_a_picture(row: torch.Tensor, shape: tuple | None) -> None:
    picture = picture_of((row, torch.tensor([1])))
    assert (None if picture is None else picture.shape) == shape
    if picture is not None:
        assert png(picture).startswith(b"\x89PNG")
        assert picture.min() == 0
        assert picture.max() == 255


def test_observables_have_their_own_words() -> None:
    task = pictures()
    chi = pt.measure(task, {"size <x>": lambda m: m[1].weight.square().sum()}, sampler=pt.SGLD(30, 300, 1e-3), **SHORT)
    text = Reader(response_page(chi.tree, "t", task=task)).text
    assert "raises ⟨size <x>⟩" in text
    assert "Where size <x> is a loss, less of it is better, invert({'size <x>': -1})" in text
    assert "LLC ± se" not in text  # the table has no λ̂ for what is no component loss


def test_noise_is_not_given_an_answer(text_response: pt.Response) -> None:
    tree = text_response.tree.copy(deep=True)
    tree["susceptibility"]["reliability"].values[:] = [[0.2], [0.1], [float("nan")]]
    text = Reader(response_page(tree, "t")).text
    assert "No row of χ can be told from noise yet: the best, 0.*, has a split-half reliability of 0.20" in text
    assert "Mostly noise (1)" in text
    assert "reliability of χ under 0.5, mostly noise: 0.*, 1.*" in text


def test_a_first_look_and_a_single_sample_have_a_page() -> None:
    task = pictures()
    look = pt.measure(task, sampler=pt.SGLD(30, 300, 1e-3), estimator="first-order")
    text = Reader(response_page(look.tree, "t", task=task)).text
    assert "Nothing was sampled: this is a first look" in text
    assert "a first look, whose ± and reliability leave out" in text
    single = pt.measure(task, sampler=pt.SGLD(30, 300, 1e-3), probes=[3], **SHORT)
    assert "a single sample is probed" in Reader(response_page(single.tree, "t", task=task)).text


def test_many_rows_stay_under_two_megabytes(text_response: pt.Response) -> None:
    import xarray

    copies = 40
    parts = {
        name: xarray.concat([text_response.tree[name].to_dataset()] * copies, "component", data_vars="minimal")
        for name in ("susceptibility", "posterior")
    }
    names = [f"l{i}h{j}" for i in range(copies) for j in range(3)]
    tree = xarray.DataTree.from_dict({f"/{name}": part.assign_coords(component=names) for name, part in parts.items()})
    page = response_page(tree, "t", task=text_response.task, decode=Letters())
    assert page.count('class="rowchi"') == 40
    assert "The 40 most reliable of 120 rows are shown." in page
    assert len(page.encode()) < 2_000_000


@pytest.mark.parametrize(
    ("value", "half_width", "words"),
    [
        (0.0058213, 6.9e-5, "+0.005821 ± 0.000069"),
        (-12.3456, 3.4, "-12.3 ± 3.4"),
        (1234.5, 120.0, "+1234 ± 120"),
        (1e-9, 2e-10, "+1e-09 ± 2e-10"),
        (0.5, 0.0, "+0.5"),
        (0.5, float("nan"), "+0.5"),
    ],
)
def test_numbers_have_the_decimals_of_their_errors(value: float, half_width: float, words: str) -> None:
    assert with_error(value, half_width) == words
