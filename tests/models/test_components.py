"""Components by name, clamped tasks, and probes that keep what lies below a component."""

import weakref

import pytest
import torch
from torch import nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models import restricted
from patterning.models.components import Component, find_component, list_components
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import loss_and_gradient
from patterning.response.adjoint import curvature

CONFIG = LanguageConfig(vocabulary=11, context=8, layers=2, heads=2, width=8)
TOKENS = torch.randint(11, (12, 8), generator=torch.Generator().manual_seed(0))


def language_task(config: LanguageConfig = CONFIG) -> Task:
    task = Task(LanguageModel(config), next_token_losses, TOKENS)
    return Task(task.load(LanguageModel(config), 10 * task.init([0])[0]), next_token_losses, TOKENS)


TASK = language_task()
ANCHOR = TASK.flatten(TASK.module)


def moved(free: Restricted, replicas: int = 3, size: float = 0.3) -> torch.Tensor:
    noise = torch.randn(replicas, free.num_parameters, generator=torch.Generator().manual_seed(1))
    return free.anchor + size * noise


@pytest.mark.parametrize(
    "name", ["full", "blocks.1.*", "blocks.0.ln1.weight", "l0 attn", *list_components(TASK.module)]
)
def test_a_clamped_task_is_the_task_at_the_expanded_parameters(name: str) -> None:
    free = Restricted(TASK, ANCHOR, name)
    flat = moved(free).requires_grad_()
    whole = free.expand(flat.detach()).requires_grad_()
    own = torch.tensor([[0, 1, 2], [5, 4, 3], [9, 9, 0]])
    for index in (own, own[:1].expand(3, -1)):
        clamped, full = free.losses(flat, index), TASK.losses(whole, index)
        torch.testing.assert_close(clamped, full)
        (gradient,) = torch.autograd.grad(clamped.sum(), flat)
        (expected,) = torch.autograd.grad(full.sum(), whole)
        changed = (whole != ANCHOR).any(0)
        assert int(changed.sum()) == free.num_parameters
        # The free coordinates keep the order of the parameters, so the gradients are the same list of numbers.
        torch.testing.assert_close(gradient, expected[:, changed], rtol=1e-3, atol=1e-4)


def test_heads_share_nothing_and_make_up_their_attention_block() -> None:
    every = sum(Restricted(TASK, ANCHOR, f"l1h{i}").num_parameters for i in range(2))
    attention = Restricted(TASK, ANCHOR, "l1 attn").num_parameters
    assert attention - every == CONFIG.width  # the output bias belongs to no head
    a, b = (find_component(TASK.module, f"l1h{i}").masks for i in range(2))
    assert all(not (a[name] & b[name]).any() for name in a)


def test_moving_a_head_moves_that_head_only() -> None:
    free = Restricted(TASK, ANCHOR, "l1h1")
    model = TASK.load(LanguageModel(CONFIG), free.expand(moved(free, 1))[0])
    seen = {}
    for part, source in (("here", TASK.module), ("moved", model)):
        source.blocks[1].attention.out.register_forward_pre_hook(
            lambda _m, args, part=part: seen.update({part: args[0].detach()})
        )
        source(TOKENS)
    changed = (seen["here"] != seen["moved"]).any(0).any(0)
    assert changed.tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("name", ["full", "l0h0", "l0 mlp", "l1h1", "l1 mlp", "unembed", "positions"])
def test_a_probe_gives_every_loss_and_keeps_what_the_component_cannot_reach(name: str) -> None:
    free = Restricted(TASK, ANCHOR, name)
    rows = torch.tensor([7, 0, 3, 11, 5])
    probe = Probe(free, rows, replicas=3)
    flat = moved(free)
    truth = TASK.sample_losses(free.expand(flat), rows.expand(3, -1))
    for _ in range(2):
        torch.testing.assert_close(probe(flat), truth)
    assert len(probe) == truth.shape[1] == 5 * 7
    kept = set(probe._constants[0])
    assert ("blocks.0" in kept) == (name in ("l1h1", "l1 mlp", "unembed"))
    assert ("blocks.1.attention" in kept) == (name == "l1 mlp")
    assert name != "full" or not kept
    values, tangent = probe.along(flat, torch.ones_like(flat))
    torch.testing.assert_close(values, truth)
    step = 1e-3
    torch.testing.assert_close(tangent, (probe(flat + step) - probe(flat - step)) / (2 * step), rtol=0.02, atol=0.02)


def test_a_probe_holds_the_graph_of_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(restricted.CELLS_AT_ONCE, "cpu", 7)
    free = Restricted(TASK, ANCHOR, "l0h0")
    assert free.out_of_reach
    before, plain = [], free.apart

    def apart(flat: torch.Tensor, rows: torch.Tensor, only: object) -> object:
        assert all(graph() is None for graph in before)
        found = plain(flat, rows, only)
        before.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(free, "apart", apart)
    probe = Probe(free, torch.arange(5))
    assert len(before) == len(probe.chunks) == 5


def test_replicas_that_take_turns_compute_what_they_share_once(monkeypatch: pytest.MonkeyPatch) -> None:
    free = Restricted(TASK, ANCHOR, "l1 mlp")
    flat, index = moved(free), torch.tensor([3, 1, 4])
    together = loss_and_gradient(free, flat, index.expand(3, -1))
    monkeypatch.setattr(restricted, "ENOUGH_CELLS", 1)
    assert free.out_of_reach
    assert free.at_once(3, 3)[0] == 1
    below: list[int] = []
    free.module.get_submodule("blocks.0.ln1").register_forward_hook(lambda *_: below.append(1))
    for rows, times in ((index, 1), (index, 1), (index + 1, 2), (index, 3)):
        found = loss_and_gradient(free, flat, rows.expand(3, -1))
        assert len(below) == times
        if rows is index:
            torch.testing.assert_close(found, together, rtol=1e-4, atol=1e-6)
    own = torch.stack([index, index + 1, index])  # each replica its own rows
    found = loss_and_gradient(free, flat, own)
    assert len(below) == 6
    torch.testing.assert_close(found[0][::2], together[0][::2], rtol=1e-5, atol=1e-6)


class Saved:
    """A tensor that a graph keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("name", ["l0h1", "l1 mlp"])
@pytest.mark.parametrize("what", ["gradient", "curvature", "slope"])
def test_replicas_that_take_turns_hold_one_graph_at_a_time(
    what: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restricted, "ENOUGH_CELLS", 1)
    free = Restricted(TASK, ANCHOR, name)
    probe = Probe(free, torch.arange(5), 3)
    weights = torch.full((len(probe),), 1 / len(probe), dtype=torch.float64)

    def peak(flat: torch.Tensor) -> int:
        live, most = weakref.WeakSet(), [0]

        def pack(tensor: torch.Tensor) -> Saved:
            saved = Saved(tensor)
            live.add(saved)
            most[0] = max(most[0], sum(other.tensor.numel() for other in live))
            return saved

        index = torch.arange(5).expand(len(flat), -1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            if what == "gradient":
                loss_and_gradient(free, flat, index)
            elif what == "curvature":
                curvature(free, flat, index, torch.ones_like(flat))
            else:
                probe.slope(flat, weights)
        return most[0]

    assert 0 < peak(moved(free, 3)) < 1.1 * peak(moved(free, 1))


class InPlace(nn.Module):
    """Adds to what a submodule returned: a kept output would grow at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y += 1
        return self.b(y)[:, 0]


def test_a_module_that_works_in_place_is_computed_as_usual() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    task = Task(InPlace(), lambda call, batch: call(batch) ** 2, x)
    free = Restricted(task, task.flatten(task.module), "b.*")
    probe, flat = Probe(free, torch.arange(6)), moved(free)
    assert probe._constants == [{}]
    truth = task.losses(free.expand(flat), torch.arange(6).expand(3, -1))
    for _ in range(3):
        torch.testing.assert_close(probe(flat), truth)


class Asleep(nn.Module):
    """A unit that is dead near w*: `b` sees no change until the bias of `a` passes 5."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rectified, self.b = nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)
        self.a.weight.data.zero_()
        self.a.bias.data.fill_(-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.rectified(self.a(x)))[:, 0]


class Choice(nn.Module):
    """No gradient leads from `a` to what `b` looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Embedding(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).argmax(1))[:, 0] + 0.1 * self.a(x).sum(1)


@pytest.mark.parametrize(("build", "size"), [(Asleep, 40.0), (Choice, 2.0)])
def test_what_a_component_moves_late_or_without_a_gradient_is_not_kept(build: type[nn.Module], size: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = Task(build(), lambda call, batch: call(batch) ** 2, torch.randn(6, 3))
    free = Restricted(task, task.flatten(task.module), "a.*")
    probe, flat = Probe(free, torch.arange(6), 3), moved(free, 3, size)
    truth = task.losses(free.expand(flat), torch.arange(6).expand(3, -1))
    assert len({round(float(value), 6) for value in truth.flatten()}) > 1
    torch.testing.assert_close(probe(flat), truth)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.write.weight = self.read.weight


@pytest.mark.parametrize(
    ("module", "what", "says"),
    [
        (TASK.module, "l2h0", "2 layers of 2 heads"),
        (TASK.module, "l0h2", "2 layers of 2 heads"),
        (TASK.module, "head 3", "is no component of LanguageModel"),
        (Tied(), "write.weight", "is tied: it is the same tensor as read.weight"),
        (
            TASK.module,
            Component("none", {"embed.weight": torch.zeros(11, 8, dtype=torch.bool)}),
            "selects no parameter",
        ),
        (TASK.module, Component("odd", {"embed.weight": torch.ones(3, dtype=torch.bool)}), r"must be bool \(11, 8\)"),
        (TASK.module, Component("odd", {"embedding": None}), "embedding is no parameter"),
        (Tied(), Component("second", {"write.weight": None}), "is tied"),
    ],
)
def test_what_selects_nothing_or_the_wrong_thing_is_named(module: nn.Module, what: str, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        find_component(module, what)


@pytest.mark.parametrize("positions", ["added", "shortformer"])
def test_attention_is_causal_and_attention_only_models_list_no_mlp(positions) -> None:
    model = LanguageModel(LanguageConfig(11, 8, 2, 2, 8, mlp_ratio=0, positions=positions))
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    same = model(TOKENS) == model(changed)
    assert same[:, :5].all()
    assert not same[:, 5:].all()
    assert list_components(model) == ["embed", "l0h0", "l0h1", "l1h0", "l1h1", "unembed"]


class Fused(nn.Module):
    """Attention as most libraries call it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.unembed = nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(8, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.embed(x)).unflatten(2, (6, 4)).transpose(1, 2).split(2, 1)
        read = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.unembed(read.transpose(1, 2).flatten(2))


def test_a_reading_that_fills_a_core_uses_fused_attention_and_a_derivative_does_not() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = Task(Fused(), next_token_losses, torch.randint(11, (150, 8)))
    free = Restricted(task, task.flatten(task.module), "qkv.*")
    probe, flat = Probe(free, torch.arange(150), 2), moved(free, 2)
    assert probe.one_by_one
    rows = torch.arange(150).expand(2, -1)
    truth = task.sample_losses(free.expand(flat), rows)
    with torch.no_grad(), torch.profiler.profile() as seen:
        torch.testing.assert_close(probe(flat), truth)
    assert any("flash_attention" in event.key for event in seen.key_averages())
    with torch.no_grad():
        values, tangent = probe.along(flat, torch.ones_like(flat))
    torch.testing.assert_close(values, truth)
    _, known = torch.func.jvp(lambda at: task.sample_losses(free.expand(at), rows), (flat,), (torch.ones_like(flat),))
    torch.testing.assert_close(tangent, known, rtol=1e-4, atol=1e-5)
    losses, _, slope = probe.slope(flat, torch.full((len(probe),), 1 / len(probe)))
    torch.testing.assert_close(losses.float(), truth)
    assert slope.abs().max() > 0
