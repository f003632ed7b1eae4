"""Networks, losses and optimisers of your own in a sweep, and how their code is told apart."""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import importlib
import importlib.util
import itertools
import logging
import os
import random
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ncutils import data, experiments, training
from ncutils.experiments import custom, jobs
from ncutils.experiments.fingerprint import fingerprint

run_, fingerprints = (sys.modules[f"ncutils.experiments.{name}"] for name in ("run", "fingerprint"))
BLOBS = (data.gaussian(20, num_classes=3), data.gaussian(20, num_classes=3, split="test"))


def mlp(num_nonlinear, num_linear, width):
    sizes = [BLOBS[0].x.shape[1], *[width] * (num_nonlinear + num_linear - 1), 3]
    layers = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b, bias=False)] + [nn.ReLU()] * (index < num_nonlinear)
    return nn.Sequential(*layers)


def dropping(num_nonlinear, num_linear, width):
    return nn.Sequential(nn.Dropout(0.2), mlp(num_nonlinear, num_linear, width))


def declare(**changes):
    options = dict(figure="own", data=BLOBS, network=mlp, nonlinear=2, linear=(1, 3), width=8, lr=0.02, seeds=2)
    options |= dict(weight_decay=(0.001, 0.01), epochs=4, batch_size=20, warmup_steps=2, measurements=2)
    return experiments.declare(**options | changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def script():
    """As in a script or a notebook, whose module is not read whole: there each thing has to be found on its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ncutils.experiments.fingerprint"], "_is_yours", lambda module: False)
        yield


def run(spec, **options):
    return experiments.run(spec, progress=False, **({"backend": "sequential"} | options))


def test_the_same_network_as_the_librarys_gives_the_same_numbers():
    """Same weights, same loss, all samples a step: only the engine and the names of the layers differ."""
    spec = declare(seeds=1, weight_decay=0.001, precision="float64", batch_size=60)
    theirs = {}
    for linear in (1, 3):
        job = next(j for j in spec.jobs() if j.network.num_linear == linear)
        flat = BLOBS[0].to(dtype=torch.float64)
        network = training.MLP(flat.x.shape[1], 3, num_nonlinear=2, num_linear=linear, width=8, dtype=torch.float64)
        with custom.undisturbed(torch.float64):
            torch.manual_seed(0)
            made = job.build(flat)
        weights = [m.weight for m in made if isinstance(m, nn.Linear)]
        with torch.no_grad():
            for ours, other in zip(network.weights, weights, strict=True):
                ours[0] = other
        rows = training.train(network, flat, job.config, progress=False).frame
        theirs[linear] = rows[rows["step"] == rows["step"].max()].set_index("layer")
    frame = run(spec).final()
    for linear, rows in theirs.items():
        own = frame[frame["depth"] == linear].set_index("layer")
        assert list(own.index) == list(range(2 + linear + 1))  # the input is layer 0
        for column in ("nc1", "nc2", "accuracy", "error", "loss"):
            assert own.loc[rows.index, column].to_numpy() == pytest.approx(rows[column].to_numpy(), rel=1e-9), column
        assert own.loc[1 + linear, "nc3"] == pytest.approx(rows.loc[1 + linear, "nc3"], rel=1e-9)


def test_every_engine_and_a_second_call_give_the_same(cache):
    spec = declare(network=dropping, loss=nn.functional.cross_entropy, optimizer=torch.optim.AdamW, lr=1e-3)
    first = run(spec)
    assert len(list(cache.glob("*.parquet"))) == len(spec.jobs()) == 8
    again = run(spec)
    assert again.frame.equals(first.frame)
    for path in cache.iterdir():
        path.unlink()
    assert run(spec, backend="loky", jobs=2).frame.equals(first.frame)
    assert first.head_ends("test").groupby("depth")["run"].count().to_dict() == {1: 4, 3: 4}


def test_runs_of_one_job_are_the_runs_of_many():
    one, many = run(declare(network=dropping)), run(declare(network=dropping, runs_per_job=None).but(runs_per_job=3))
    assert one.frame.equals(many.frame)


def test_seed_step_size_and_weight_decay_reach_the_run():
    frame = run(declare(lr=(0.02, 0.05))).final()
    last = frame[frame["layer"] == frame["num_nonlinear"] + frame["num_linear"]]
    assert last["loss"].nunique() == len(last) == 2 * 2 * 2 * 2
    assert set(zip(frame["lr"], frame["weight_decay"], strict=True)) == {
        (a, b) for a in (0.02, 0.05) for b in (0.001, 0.01)
    }


def test_the_seed_reaches_the_initial_weights_and_the_batches():
    def constant(num_nonlinear, num_linear, width):
        made = mlp(num_nonlinear, num_linear, width)
        for number, parameter in enumerate(made.parameters()):
            torch.nn.init.eye_(parameter).data.mul_(1 + number)
        return made

    for make, at_the_start, at_the_end in ((mlp, 2, 2), (constant, 1, 2)):
        frame = run(declare(network=make, linear=1, weight_decay=0.001))
        assert frame[frame["step"] == 0].groupby("split")["loss"].nunique().tolist() == [at_the_start] * 2
        assert (
            frame[frame["step"] == frame["step"].max()].groupby("split")["loss"].nunique().tolist() == [at_the_end] * 2
        )


def test_the_optimizer_is_given_what_is_swept(tmp_path):
    seen = tmp_path / "seen"

    def optimizer(parameters, lr, weight_decay):
        with seen.open("a") as file:
            print(lr, weight_decay, file=file)
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)

    run(declare(optimizer=optimizer, linear=1, seeds=1))
    assert seen.read_text().split() == ["0.02", "0.001", "0.02", "0.01"]


def test_torch_random_numbers_go_on_as_before():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run(declare(network=dropping, linear=1, seeds=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_callers_default_dtype_changes_nothing():
    spec = declare(linear=1, seeds=1, precision="float64")
    first = run(spec).frame
    for path in Path(os.environ["NCUTILS_CACHE"]).iterdir():
        path.unlink()
    torch.set_default_dtype(torch.float64)
    try:
        assert run(spec).frame.equals(first) and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_run_that_diverges_is_told():
    spec = declare(lr=(0.02, 1e8), linear=1, weight_decay=0.001, seeds=1, warmup_steps=0)
    with pytest.warns(UserWarning, match="1 of 2 runs diverged"):
        assert run(spec).final()["lr"].unique().tolist() == [0.02]


def test_words_and_cost(capsys):
    spec = declare(optimizer=torch.optim.AdamW)
    assert "network   mlp, ReLU layers 2, linear layers 1, 3" in spec.describe()
    assert "AdamW, lr / 10" in spec.describe() and "flow time" not in spec.describe()
    assert "momentum 0.9" in declare().describe() and "flow time" in declare().describe()
    cost = experiments.cost(spec)
    assert cost.jobs == 8 and cost.seconds > 0 and cost.flops > 0
    result = run(spec)
    assert result.provenance["flow_time"] is None and result.provenance["specification"]["momentum"] is None
    with pytest.raises(ValueError, match="frame must come from SGD, whose flow this is the time of; got AdamW"):
        result.flow_time()


# --- stored results


@pytest.mark.parametrize("part", ["network", "loss", "optimizer"])
def test_other_code_of_the_same_name_is_another_result(part, tmp_path, script):
    def scaled(by):
        def network(num_nonlinear, num_linear, width):
            made = mlp(num_nonlinear, num_linear, width)
            with torch.no_grad():
                made[0].weight.mul_(by)
            return made

        def loss(outputs, y):
            return by * nn.functional.cross_entropy(outputs, y)

        def optimizer(parameters, lr, weight_decay):
            return torch.optim.SGD(parameters, lr=by * lr, weight_decay=weight_decay)

        return {"network": network, "loss": loss, "optimizer": optimizer}[part]

    one, other = (declare(**{part: scaled(by)}) for by in (1.0, 0.5))
    same = declare(**{part: scaled(1.0)})
    keys = [[job.key() for job in spec.jobs()] for spec in (one, other, same)]
    assert keys[0] == keys[2] and not set(keys[0]) & set(keys[1])
    experiments.save_archive(run(one), tmp_path)
    assert experiments.load_archive(same, folder=tmp_path).frame.shape == run(one).frame.shape
    with pytest.raises(ValueError, match=f"made with another {part} of this name"):
        experiments.load_archive(other, folder=tmp_path)


@pytest.mark.parametrize("constant", ["_CODE_HASH", "HASH_OF_OWN"])
def test_what_the_library_does_with_your_code_is_part_of_the_key(monkeypatch, constant):
    own, plain = (declare(**part).jobs()[0] for part in ({}, {"network": "mlp"}))
    before = own.key(), plain.key()
    monkeypatch.setattr(jobs, constant, "0" * 16)
    assert own.key() != before[0]
    assert (plain.key() == before[1]) is (constant == "HASH_OF_OWN")


def test_an_archive_of_the_librarys_network_is_not_one_of_yours(tmp_path):
    experiments.save_archive(run(declare(network="mlp")), tmp_path)
    with pytest.raises(ValueError, match=r"loss is None there, 'cross_entropy \(own\)' here"):
        experiments.load_archive(declare(network="mlp", loss=nn.functional.cross_entropy), folder=tmp_path)


HELPER = 1.0


def helped(x):
    return help_(x) * HELPER


def help_(x):
    return x + 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x).relu()


@dataclasses.dataclass
class Maker:  # cannot be hashed
    scale: float = 1.0

    def __call__(self, num_nonlinear, num_linear, width):
        return mlp(num_nonlinear, num_linear, width)


class StrEnum(str, enum.Enum):
    A = "a"

    def f(self):
        return 1


OtherStrEnum = enum.Enum("StrEnum", {"A": "a", "f": lambda self: 2}, type=str)


class Marked:
    __gain__ = 1


OtherMarked = type("Marked", (), {"__gain__": 2})


def trying(x):
    try:
        x.a()
    except ValueError:
        x.b()


def caught_elsewhere():
    """The same instructions, with nothing caught around them."""
    if not hasattr(trying.__code__, "co_exceptiontable"):  # Python 3.10 has it in the instructions
        return None
    return types.FunctionType(trying.__code__.replace(co_exceptiontable=b""), globals(), "trying")


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Base(abc.ABC):
    @abc.abstractmethod
    def f(self): ...

    @functools.cached_property
    def g(self):
        return 1


class Listed(list):
    pass


@functools.wraps(nn.functional.cross_entropy)
def wrapped(outputs, y):
    return nn.functional.mse_loss(outputs, outputs)


def test_what_a_function_calls_is_part_of_it(script, monkeypatch):
    before = fingerprint(helped)
    assert fingerprint(helped) == before
    monkeypatch.setitem(globals(), "HELPER", 2.0)
    changed = fingerprint(helped)
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "help_", lambda x: x + 2)
    assert len({before, changed, fingerprint(helped)}) == 3
    monkeypatch.undo()
    assert fingerprint(helped) == before


def test_what_a_function_inside_calls_is_part_of_it(script, monkeypatch):
    def outer(x):
        def inside(y):
            return help_(y)

        return [inside(y) for y in x]

    before = fingerprint(outer)
    monkeypatch.setitem(globals(), "help_", lambda x: x + 2)
    assert fingerprint(outer) != before


def test_a_method_is_part_of_its_class(script, monkeypatch):
    before = fingerprint(Net)
    make = fingerprint(lambda: Net())
    monkeypatch.setattr(Net, "forward", lambda self, x: self.layer(x))
    assert fingerprint(Net) != before and fingerprint(lambda: Net()) != make
    monkeypatch.undo()
    assert fingerprint(Net) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(mlp, width=8), functools.partial(mlp, width=9)),
        (lambda x, by=1: x, lambda x, by=2: x),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.relu(), lambda x: x.tanh()),
        (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
        (torch.optim.SGD, torch.optim.AdamW),
        ({"a": (1, 2)}, {"a": (1, 3)}),
        ((1, (2, 3)), ((1, 2), 3)),
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.ones(3)),
        (nn.Linear(2, 2), nn.Linear(2, 3)),
        (0, False),
        (StrEnum.A.f, OtherStrEnum.A.f),
        (Marked, OtherMarked),
        (trying, caught_elsewhere()),
        ({lambda: 1}, {lambda: 2}),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.5)),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")),
        (nn.functional.max_pool2d, nn.functional.adaptive_max_pool2d),
        (torch.optim.swa_utils.get_ema_avg_fn(0.9), torch.optim.swa_utils.get_ema_avg_fn(0.99)),
        (lambda *a: 1, lambda **a: 1),
        (lambda a, b: 1, lambda a, *, b: 1),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(3), torch.zeros(3, requires_grad=True)),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (1j, 2j),
        ({"a": 1}.get, {"a": 2}.get),
        (Slotted(1), Slotted(2)),
        (Listed([1]), Listed([2])),
        (random.Random(1), random.Random(2)),
        (collections.deque([1]), collections.deque([2])),
        (collections.defaultdict(list), collections.defaultdict(dict)),
        (Maker(1.0), Maker(2.0)),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        (dataclasses.make_dataclass("A", [("a", int, 1)]), dataclasses.make_dataclass("A", [("a", int, 2)])),
    ],
)
def test_what_differs_is_told_apart(one, other, script):
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)


def test_the_same_in_every_process():
    program = """if True:
    from ncutils.experiments.fingerprint import fingerprint
    words = {"b", "a", "c"}
    class Own:
        size = 3
        def f(self, x): return x in {"x", "y", "z"} and x in words
    print(fingerprint(Own, Own().f, lambda: Own()))
    """
    found = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] and len(found[0].strip()) == 16


def test_what_cannot_be_told_apart_is_refused():
    with open(os.devnull) as file:
        for held in (threading.Lock(), file, (n for n in "ab")):
            with pytest.raises(TypeError, match="must hang on functions, classes and values; got <"):
                fingerprint(lambda held=held: held)
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(TypeError, match="must not hang on values nested this deeply"):
        fingerprint(deep)


def closing():
    if False:
        later = 1
    return lambda: later


LOG = logging.getLogger("own")


@pytest.mark.parametrize("value", [LOG, Base, closing(), torch.Generator(), Maker(), nn.functional.max_pool2d, wrapped])
def test_what_is_common_is_not_refused(value):
    assert len(fingerprint(value, lambda: value)) == 16


def test_a_wrapped_function_is_yours(script):
    other = functools.wraps(nn.functional.cross_entropy)(lambda outputs, y: 2 * outputs.sum())
    assert len({fingerprint(wrapped), fingerprint(other), fingerprint(nn.functional.cross_entropy)}) == 3


def test_values_that_are_equal_are_the_same_however_often_they_are_shared(script):
    once = ("a", 1)
    assert fingerprint((once, once)) == fingerprint((("a", 1), tuple(["a", 1])))
    assert fingerprint(np.array([None, 1.5], dtype=object)) == fingerprint(np.array([None, 1.5], dtype=object))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own, in a file."""
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\nSCALE = 1.0\ndef helper(x):\n    return SCALE * x\n"
        "def net(num_nonlinear, num_linear, width):\n"
        "    made = nn.Sequential(nn.Linear(64, width), nn.Linear(width, 3))\n"
        "    made[0].weight.data.mul_(SCALE)\n    return made\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    run_._end_workers()  # those that an earlier test left cannot import it
    yield importlib.import_module("mynet")
    del sys.modules["mynet"]
    run_._end_workers()


def test_a_module_of_your_own_is_part_of_what_uses_it(module, monkeypatch):
    def inside(x):
        import mynet

        return mynet.helper(x)

    def uses(x):
        return module.helper(x)

    monkeypatch.setitem(globals(), "mynet", module)
    named = eval("lambda x: mynet.helper(x)", globals())
    before = [fingerprint(f) for f in (inside, uses, named, module.net)]
    monkeypatch.setattr(module, "SCALE", 3.0)
    assert all(
        now != was for now, was in zip([fingerprint(f) for f in (inside, uses, named, module.net)], before, strict=True)
    )


def test_workers_compute_with_the_code_that_is_here(module, monkeypatch):
    """They imported the module before it was changed here, and would go on with what they have."""
    spec = declare(network=module.net, nonlinear=1, linear=1)
    before = run(spec, backend="loky", jobs=2).frame
    monkeypatch.setattr(module, "SCALE", 3.0)
    changed = run(spec, backend="loky", jobs=2).frame
    assert not changed["loss"].equals(before["loss"])
    for path in Path(os.environ["NCUTILS_CACHE"]).iterdir():
        path.unlink()
    assert run(spec).frame.equals(changed)
    if importlib.util.find_spec("cloudpickle"):
        assert importlib.import_module("cloudpickle").list_registry_pickle_by_value() == set()


def test_what_a_run_changes_the_next_one_does_not_see():
    """A loss that counts: each job has its own count, on every engine."""

    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, outputs, y):
            self.calls += 1
            return nn.functional.cross_entropy(outputs, y) * (1 + 0.1 * self.calls)

    found = []
    for options in ({"backend": "sequential"}, {"backend": "loky", "jobs": 2}):
        with pytest.warns(UserWarning, match="something that they hang on changed"):
            found.append(run(declare(loss=Counting(), linear=1), **options).frame)
    assert found[0].equals(found[1])


def test_submodules_of_your_own_are_followed(tmp_path, monkeypatch):
    for path, text in {
        "lib1/__init__.py": "",
        "lib1/other.py": "def through(x):\n    from .sub.h import gain\n    return gain(x)\n",
        "lib1/sub/__init__.py": "from .h import gain as alias\n"
        "def inner(x):\n    from . import h\n    return h.gain(x)\n",
        "lib1/sub/h.py": "BY = 1\ndef gain(x):\n    return BY * x\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def imports(x):
        import lib1.sub.h as q

        return q.gain(x)

    lib1 = importlib.import_module("lib1.sub.h") and sys.modules["lib1"]
    held = {"in": types.SimpleNamespace(module=lib1)}
    other = importlib.import_module("lib1.other").through  # reads its sibling when it is called
    uses = [
        lambda x: lib1.sub.h.gain(x),
        lib1.sub.inner,
        other,
        lib1.sub.alias,
        imports,
        lambda x, m=lib1: m,
        lambda x: held,
    ]
    before = [fingerprint(f) for f in uses]
    assert before == [fingerprint(f) for f in uses]
    monkeypatch.setattr(sys.modules["lib1.sub.h"], "BY", 5)
    assert not set(before) & {fingerprint(f) for f in uses}
    for name in [name for name in sys.modules if name.partition(".")[0] == "lib1"]:
        del sys.modules[name]


def test_code_that_changes_while_it_runs_is_told():
    history = []

    def loss(outputs, y):
        history.append(len(outputs))
        return nn.functional.cross_entropy(outputs, y)

    spec = declare(loss=loss, linear=1, seeds=1)
    with pytest.warns(UserWarning, match="loss: something that they hang on changed while a run went on"):
        run(spec)
    assert not list(Path(os.environ["NCUTILS_CACHE"]).glob("*.parquet"))  # the next process would find them


def test_the_loss_of_many_samples_is_that_of_all_at_once():
    many = data.gaussian(700, num_classes=3)  # more than a part
    for network in ("mlp", mlp):
        frame = run(declare(data=many, network=network, loss=nn.CrossEntropyLoss(reduction="sum"), linear=1, seeds=1,
                            lr=1e-9, epochs=1)).frame  # fmt: skip
        assert frame["loss"].between(0.5 * 2100, 4 * 2100).all()


def test_parts_are_named_as_declared():
    own, theirs = (run(declare(network=network, linear=3, seeds=1)).final() for network in (mlp, "mlp"))
    parts = [frame[frame["layer"] > 0].drop_duplicates("layer").set_index("layer")["part"] for frame in (own, theirs)]
    assert parts[0].to_dict() == parts[1].to_dict()


def test_linear_layers_that_only_train_and_lazy_ones_are_no_obstacle():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.other = nn.LazyLinear(8), nn.Linear(8, 3, bias=False), nn.Linear(8, 3)

        def forward(self, x):
            z = self.body(x).relu()
            return self.head(z) + 0.1 * self.other(z) if self.training else self.head(z)

    frame = run(declare(network=lambda **_: Auxiliary(), nonlinear=1, linear=1, seeds=1)).final()
    assert sorted(frame["name"].unique()) == ["body.input", "head.input", "output"] and frame["nc3"].notna().any()


def test_cost_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    experiments.cost(declare(network=lambda **_: nn.Sequential(Eye(), nn.Linear(64, 3)), linear=1, precision="float64"))
    assert torch.equal(torch.rand(3), expected) and torch.get_default_dtype() == torch.float32


class Eye(nn.Module):
    def forward(self, x):
        return x @ torch.eye(x.shape[1])


def test_layers_are_numbered_as_they_run():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3, bias=False)  # before what runs before it
            self.body = mlp(1, 1, 8)[:2]

        def forward(self, x):
            return self.head(self.body(x))

    frame = run(declare(network=lambda **_: Crossed(), nonlinear=1, linear=1, seeds=1)).final()
    assert frame.sort_values("layer")["name"].unique().tolist() == ["body.0.input", "head.input", "output"]


def test_a_network_of_the_library_under_another_loss_says_that_loss():
    frame = run(declare(network="mlp", loss=nn.functional.cross_entropy, linear=1, seeds=1)).frame
    start = frame[frame["step"] == 0]
    assert (start["loss"] - np.log(3)).abs().max() < 1 and not np.allclose(start["loss"], start["error"] ** 2 / 120)


def test_a_function_of_the_librarys_name_is_not_the_librarys(tmp_path):
    experiments.save_archive(run(declare(linear=1, seeds=1)), tmp_path)
    with pytest.raises(ValueError, match=r"network is 'mlp \(own\)' there, 'mlp' here"):
        experiments.load_archive(declare(network="mlp", linear=1, seeds=1), folder=tmp_path)


def test_another_python_is_said_not_to_have_been_compared(tmp_path, monkeypatch):
    spec = declare(linear=1, seeds=1)
    experiments.save_archive(run(spec), tmp_path)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    with pytest.warns(UserWarning, match="network not compared, for Python 3"):
        experiments.load_archive(spec, folder=tmp_path)


# --- requests that make no experiment


KEPT = nn.Linear(BLOBS[0].x.shape[1], 3)


def wrong_width(num_nonlinear, num_linear, width):
    return nn.Linear(BLOBS[0].x.shape[1], 4)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"network": "vgg"},
            ValueError,
            "network must be one of mlp, resnet20, or a function that makes one; got 'vgg'",
        ),
        ({"loss": "mse"}, TypeError, "loss must be a function; got 'mse'"),
        ({"optimizer": 3}, TypeError, "optimizer must be a function; got 3"),
        ({"class_means": True}, ValueError, "class_means must be False with a network of your own; got True"),
        ({"precision": "bfloat16"}, ValueError, "precision must be float32 or float64 with code of your own"),
        ({"network": lambda **_: None}, TypeError, "network must return an nn.Module; got None"),
        (
            {"network": wrong_width},
            ValueError,
            r"network must map x \(2, 64\) to \(2, 3\); got Tensor of torch.float32",
        ),
        ({"optimizer": lambda *_, **__: 1}, TypeError, "optimizer must return a torch.optim.Optimizer; got int"),
        ({"lr": float("nan")}, ValueError, r"lr\[0\] must be at least 0, finite; got nan"),
        ({"nonlinear": -1}, ValueError, r"nonlinear\[0\] must be at least 0; got -1"),
        ({"linear": 0}, ValueError, r"linear\[0\] must be at least 1; got 0"),
        ({"network": nn.Linear(64, 3)}, TypeError, "network must be a function that makes a module, not a module"),
        ({"network": lambda width: None}, TypeError, "network must take num_nonlinear, num_linear and width by name"),
        ({"network": lambda **_: nn.Linear(5, 3)}, ValueError, r"network must take x \(2, 64\), the shape of the data"),
        (
            {"network": lambda **_: nn.Linear(64, 3), "linear": 3},
            ValueError,
            "at least num_linear = 3 nn.Linear layers",
        ),
        ({"network": lambda **_: KEPT, "linear": 1, "runs_per_job": 2}, ValueError, "got one that it made before"),
        ({"loss": nn.CrossEntropyLoss}, ValueError, "loss must give one number with a gradient for outputs"),
        ({"loss": nn.functional.mse_loss}, ValueError, "loss must give one number with a gradient for outputs"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, ValueError, "loss must give one number with a gradient"),
        ({"loss": lambda o, y: 1.0}, ValueError, "loss must give one number with a gradient .*; got 1.0"),
        (
            {"optimizer": lambda p, lr, weight_decay: torch.optim.LBFGS(p)},
            ValueError,
            "step without a closure; got LBFGS",
        ),
        (
            {"optimizer": torch.optim.AdamW, "sweep": {"momentum": (0.0, 0.9)}},
            ValueError,
            "sweep must not name momentum",
        ),
        ({"measured": 10}, ValueError, "measured must be a multiple of the 3 classes; got 10"),
    ],
)
def test_refusals(changes, error, words):
    with pytest.raises(error, match=words):
        run(declare(**changes))


def test_names():
    assert custom.name(functools.partial(mlp, width=3)) == "mlp" and custom.name(torch.optim.AdamW) == "AdamW"
    assert custom.name(nn.CrossEntropyLoss()) == "CrossEntropyLoss"


# --- one run after another


def own_job(**changes):
    return declare(linear=1, weight_decay=0.001, **changes).jobs()[0]


def test_the_seconds_of_the_runs_are_added_and_their_numbers_kept(monkeypatch):
    real, seconds = custom._plain.train, iter((2.0, 3.5))
    monkeypatch.setattr(custom._plain, "train", lambda *given: dataclasses.replace(real(*given), seconds=next(seconds)))
    job = own_job(runs_per_job=2, lr=(0.02,), warmup_steps=0)
    samples, _ = job.load()
    result = custom.train(job, samples, {"train": samples})
    assert result.seconds == 5.5 and result.diverged == []
    assert [row["run"] for row in result.rows] == sorted(row["run"] for row in result.rows)
    assert {(row["run"], row["seed"]) for row in result.rows} == {(0, 0), (1, 1)}
    seconds = iter((1.0, 1.0))
    assert custom.train(job, samples, {}).seconds == 2.0


def test_a_run_that_diverges_is_told_by_its_number():
    job = own_job(lr=(0.02, 1e8), runs_per_job=4, warmup_steps=0)
    samples, _ = job.load()
    result = custom.train(job, samples, {"train": samples})
    assert job.training.lr == (0.02, 0.02, 1e8, 1e8) and job.seeds == (0, 1, 0, 1)
    assert [divergence.run for divergence in result.diverged] == [2, 3]


def test_the_default_dtype_comes_back_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(KeyError), custom.undisturbed(torch.float64):
        assert torch.rand(2).dtype == torch.float64
        raise KeyError
    assert torch.get_default_dtype() == torch.float32 and torch.equal(torch.rand(2), expected)


# --- what a network and a loss must do


def raising(error):
    class Raising(nn.Module):
        def forward(self, x):
            raise error("it says so")

    return lambda **_: Raising()


def answering(answer):
    class Answering(nn.Module):
        def forward(self, x):
            return answer(x)

    return lambda **_: Answering()


def build(**changes):
    job = own_job(**changes)
    return custom.build(job, job.load()[0])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, IndexError])
def test_whatever_a_network_or_a_loss_raises_is_said(error):
    with pytest.raises(ValueError, match=r"network must take x \(2, 64\), the shape of the data: it says so"):
        build(network=raising(error))

    def loss(outputs, y):
        raise error("it says so")

    words = r"loss must give one number with a gradient for outputs \(2, 3\), labels \(2,\): it says so"
    with pytest.raises(ValueError, match=words):
        build(loss=loss)


def test_another_error_of_a_network_or_a_loss_is_its_own():
    def loss(outputs, y):
        raise ZeroDivisionError

    for changes in ({"network": raising(ZeroDivisionError)}, {"loss": loss}):
        with pytest.raises(ZeroDivisionError):
            build(**changes)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x[:, :2], "Tensor of torch.float32, shape (2, 2)"),
        (lambda x: x[:, :4], "Tensor of torch.float32, shape (2, 4)"),
        (lambda x: x[:1, :3], "Tensor of torch.float32, shape (1, 3)"),
        (lambda x: x[:, :6].reshape(2, 3, 2), "Tensor of torch.float32, shape (2, 3, 2)"),
        (lambda x: x[0, 0], "tensor("),
        (lambda x: [x[:, :3]], "[tensor("),
        (lambda x: x[:, :3].detach().numpy(), "ndarray of float32, shape (2, 3)"),
    ],
)
def test_a_network_gives_one_number_for_each_class(answer, words):
    with pytest.raises(ValueError) as refused:
        build(network=answering(answer))
    assert str(refused.value).startswith(f"network must map x (2, 64) to (2, 3); got {words}")


@pytest.mark.parametrize(("layers", "enough"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_network_has_the_linear_layers_that_are_measured(layers, enough):
    def make(num_nonlinear, num_linear, width):
        sizes = [64, *[width] * (layers - 1), 3]
        made = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        return nn.Sequential(*made) if layers else answering(lambda x: x[:, :3])()

    job = declare(network=make, linear=2, nonlinear=0, weight_decay=0.001).jobs()[0]
    if enough:
        assert len(custom.build(job, job.load()[0])) == layers
    else:
        words = f"at least num_linear = 2 nn.Linear layers, whose inputs are measured; got {layers}"
        with pytest.raises(ValueError, match=words):
            custom.build(job, job.load()[0])


@pytest.mark.parametrize(
    ("loss", "fits"),
    [
        (lambda o, y: o.sum(), True),
        (lambda o, y: o.sum().reshape(1, 1), True),
        (lambda o, y: o[:0].flatten(), False),
        (lambda o, y: o[0, :2], False),
        (lambda o, y: o.sum().detach(), False),
        (lambda o, y: o.sum().item(), False),
    ],
)
def test_a_loss_gives_one_number_with_a_gradient(loss, fits):
    outputs = torch.ones(2, 3, requires_grad=True)
    if fits:
        assert custom.check_loss(loss, outputs, torch.tensor([0, 1])) is None
    else:
        words = r"loss must give one number with a gradient for outputs \(2, 3\), labels \(2,\); got "
        with pytest.raises(ValueError, match=words):
            custom.check_loss(loss, outputs, torch.tensor([0, 1]))


@pytest.mark.parametrize("training", [True, False])
def test_a_network_that_was_tried_is_as_it_was(training):
    made = dropping(1, 1, 8).train(training)
    job = own_job(network=lambda **_: made)
    samples, _ = job.load()
    assert custom.build(job, samples) is made and made.training is training
    assert not any(module._forward_hooks for module in made.modules())
    with pytest.raises(ValueError, match="network must make a new module whenever it is called; got one"):
        custom.build(job, samples)


def test_a_network_that_is_one_linear_layer_is_measured():
    frame = run(declare(network=lambda **_: nn.Linear(64, 3, bias=False), nonlinear=0, linear=1, seeds=1)).final()
    assert sorted(frame["layer"].unique()) == [0, 1] and set(frame["part"]) == {"nonlinear", "linear"}


# --- how it is sent


def test_what_is_sent_comes_back(monkeypatch):
    job = own_job(loss=nn.functional.cross_entropy, optimizer=torch.optim.AdamW)
    for there in (True, False):
        if not there:  # an older joblib brings one
            brought = pytest.importorskip("cloudpickle")
            monkeypatch.setattr(importlib.import_module("joblib.externals"), "cloudpickle", brought, raising=False)
            monkeypatch.setitem(sys.modules, "cloudpickle", None)
        bare, code = custom.packed(job)
        assert bare.network.kind == "mlp" and bare.loss is None and bare.optimizer is None and isinstance(code, bytes)
        assert bare.seeds == job.seeds and bare.network.width == job.network.width
        back = custom.unpacked(bare, code)
        assert back.loss is nn.functional.cross_entropy and back.optimizer is torch.optim.AdamW
        assert back.network.kind.__name__ == "mlp" and back.network.num_nonlinear == 2
    plain = declare(network="mlp").jobs()[0]
    assert custom.packed(plain) == (plain, None) and custom.unpacked(plain, None) is plain


def test_a_module_that_cannot_be_copied_is_sent_by_its_name(module, monkeypatch):
    job = own_job(network=module.net)
    assert custom.unpacked(*custom.packed(job)).network.kind is not module.net
    monkeypatch.setattr(module, "SCALE", threading.Lock())
    assert custom.unpacked(*custom.packed(job)).network.kind is module.net


# --- more that is told apart


cached = functools.cached_property


def recursive(by):
    def count(n):
        return by + count(n - 1) if n else 0

    return count


def method_of(kind, by):
    return type("Own", (), {"f": kind(eval(f"lambda *a: {by}")), "__module__": "nowhere"})


def property_of(getter, setter):
    return type("Own", (), {"f": property(getter, setter)})


class Reduced:
    def __init__(self, name):
        self.name = name

    def __reduce_ex__(self, protocol):
        return self.name


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (recursive(1), recursive(1), recursive(2)),
        (method_of(staticmethod, 1), method_of(staticmethod, 1), method_of(staticmethod, 2)),
        (method_of(classmethod, 1), method_of(classmethod, 1), method_of(classmethod, 2)),
        (method_of(cached, 1), method_of(cached, 1), method_of(cached, 2)),
        (method_of(staticmethod, 1), method_of(staticmethod, 1), method_of(classmethod, 1)),
        (property_of(len, None), property_of(len, None), property_of(abs, None)),
        (property_of(len, len), property_of(len, len), property_of(len, abs)),
        (np.exp, np.exp, np.sin),
        (str.upper, str.upper, str.lower),
        (dict.fromkeys, dict.fromkeys, bytes.fromhex),
        (len, len, abs),
        (np.float32(1), np.float32(1), np.float32(2)),
        (np.float32(1), np.float32(1), np.float64(1)),
        (torch.float32, torch.float32, torch.float64),
        (range(3), range(3), range(4)),
        (Reduced("one"), Reduced("one"), Reduced("two")),
        ({1, 2, 3}, {3, 2, 1}, {1, 2, 4}),
        (frozenset({1}), frozenset({1}), {1}),
        ((1, 2), (1, 2), [1, 2]),
        ([1, 2], [1, 2], [2, 1]),
        (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
        (np.arange(4), np.arange(4), np.arange(4).reshape(2, 2)),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy(), np.arange(6).reshape(3, 2)),
        (nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), torch.ones(2)),
        (torch.ones(2) * 1j, torch.ones(2) * 1j, (torch.ones(2) * 1j).conj()),
        (functools.partial(len, 1), functools.partial(len, 1), functools.partial(abs, 1)),
        (functools.partial(len, key=1), functools.partial(len, key=1), functools.partial(len, key=2)),
        (functools.lru_cache(recursive(1)), functools.lru_cache(recursive(1)), functools.lru_cache(recursive(2))),
        (Maker(1.0).__call__, Maker(1.0).__call__, Maker(2.0).__call__),
    ],
)  # fmt: skip
def test_the_same_is_the_same_and_the_other_another(one, same, other, script):
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_values_are_told_apart_by_their_order_and_number(script):
    assert len({fingerprint(), fingerprint(1), fingerprint(1, 2), fingerprint(2, 1), fingerprint("1", "2")}) == 5
    assert fingerprint("12") != fingerprint("1", "2")


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")])
def test_a_tensor_without_plain_contents_is_refused(value):
    with pytest.raises(
        TypeError, match=r"must hang on functions, classes and values; got .*, which is no dense tensor"
    ):
        fingerprint(value)


def test_an_object_whose_own_method_fails_is_refused():
    class Failing:
        def __reduce_ex__(self, protocol):
            raise ZeroDivisionError

    with pytest.raises(TypeError, match=r"must hang on functions, classes and values; got <test_custom\."):
        fingerprint(Failing())


def test_what_a_module_holds_and_nobody_can_read_is_known_by_its_kind(module, monkeypatch):
    before = fingerprint(module.net)
    monkeypatch.setattr(module, "HELD", threading.Lock(), raising=False)
    held = fingerprint(module.net)
    monkeypatch.setattr(module, "HELD", threading.Lock())
    assert fingerprint(module.net) == held != before
    monkeypatch.setattr(module, "HELD", (n for n in "ab"))
    assert fingerprint(module.net) != held


@pytest.mark.parametrize(("name", "counts"), [("__half", True), ("half__", True), ("_one", True), ("__both__", False)])
def test_all_names_of_a_module_but_pythons_own_are_part_of_it(name, counts, module):
    setattr(module, name, 1)
    before = fingerprint(module.net)
    setattr(module, name, 2)
    assert (fingerprint(module.net) != before) is counts


@pytest.mark.parametrize(
    ("place", "yours"),
    [
        ("/home/me/mine.py", True),
        ("/home/me/site-packages-of-mine/mine.py", True),
        ("/home/me/env/lib/site-packages/mine.py", False),
        ("/usr/lib/python3/dist-packages/mine.py", False),
        (itertools.__spec__.origin, False),
        ("frozen", False),
        (os.__file__, False),
        (torch.__file__, False),
        (torch.nn.__file__, False),
        (data.__file__, False),
        (str(Path(data.__file__).parents[0] / "mine.py"), False),
        (str(Path(data.__file__).parents[1] / "mine.py"), True),
    ],
)
def test_a_module_is_yours_by_where_its_file_is(place, yours, monkeypatch):
    found = types.ModuleType("mine")
    found.__file__ = place
    monkeypatch.setitem(sys.modules, "mine", found)
    assert (found in fingerprints.yours()) is yours


@pytest.mark.parametrize(
    ("places", "yours"),
    [
        ((), False),
        (("/home/me/mine",), True),
        (("/x/site-packages/mine",), False),
        (("/x/site-packages/a", "/home/b"), True),
    ],
)
def test_a_package_without_a_file_is_yours_by_its_places(places, yours, monkeypatch):
    found = types.ModuleType("mine")
    found.__path__ = places
    monkeypatch.setitem(sys.modules, "mine", found)
    assert (found in fingerprints.yours()) is yours


def test_scripts_and_what_python_has_built_in_are_not_yours(monkeypatch):
    for name in ("__main__", "__mp_main__", "itertools"):
        found = types.ModuleType(name)
        found.__file__ = "/home/me/mine.py"
        monkeypatch.setitem(sys.modules, f"alias_of_{name}", found)
        assert found not in fingerprints.yours()
    monkeypatch.setitem(sys.modules, "no_module", types.SimpleNamespace(__name__="no_module", __file__="/home/me/a.py"))
    assert all(isinstance(module, types.ModuleType) for module in fingerprints.yours())
