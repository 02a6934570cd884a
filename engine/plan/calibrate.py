"""Measure on the running ranks what the planner otherwise assumes.

Nothing of it is taken from a generation: the bandwidth comes from matrix-vector products, the time
of a layer from models of the same architecture that have next to nothing to read, the latency from
sums of which each needs the one before. So what a plan makes of them is a prediction still.
"""

from __future__ import annotations

import functools
import json
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import ModelError
from ..models import tiny
from ..models.agree import by_one, exchange, together
from ..models.dry import paper_model
from ..models.folder import arrays, text_config
from ..models.generate import decoding_stream
from ..models.load import LoadedModel
from ..progress import Progress
from ..steps import steps
from .measured import Measured, RankSpeed, Spread, host_memory

if TYPE_CHECKING:
    import mlx.core as mx

ROUNDS = 15  # measurements that count
WARM_UP = 2  # those that do not: the first ones compile and allocate
LONG_ENOUGH = 0.02  # seconds that a measurement should take, so that the clock does not matter
CHAIN = 32  # sums of which each needs the one before
LARGE = 4 << 20  # bytes of a large sum
TOKENS = 6  # that are generated to time a layer
LEAST_SIDE, MOST_SIDE = 256, 4096  # of a matrix; larger ones are read no faster
MOST_BYTES = 1 << 30  # of the matrices that are read
MOST_PROMPT = 2048  # rows of a matrix product; mlx-lm reads as many tokens at once
DEEPER = 3  # times as many layers has the deeper of the two models that a layer is timed with

# What takes the place of an architecture of which there is no tiny model that runs here.
DENSE, EXPERTS = "llama", "qwen3_moe"


# A product with a matrix, and the bytes of that.
_Matrix = tuple[Callable[["mx.array"], "mx.array"], int]


@attrs.frozen
class _Form:
    """What is measured: how weights are stored, how wide a token is, of which kind layers are."""

    model: str
    kind: str
    experts: bool
    hidden: int
    dtype: str
    quantization: dict[str, Any] | None

    @property
    def words(self) -> str:
        if self.quantization is None:
            return f"{self.dtype} weights"
        bits, group = self.quantization["bits"], self.quantization["group_size"]
        return f"{bits}-bit weights in groups of {group}"


def calibrate(
    model: LoadedModel | str | Path | Mapping[str, Any], *, rounds: int = ROUNDS
) -> Measured:
    """Measure the ranks' speed for a model. Every rank must call it; all get the same record.

    It takes some seconds, shows how far it is on rank 0, and an interrupt stops it on all ranks
    after the same round, as in `steps`. What the ranks hold stays as it is; the random state, too.

    Each round measures everything once, on all ranks at the same time: how fast a matrix-vector
    product reads weights in the form of the model's (bytes/s), what a layer of its architecture
    takes beyond that (s; the difference of two models with next to nothing to read), the latency of
    an all_sum of a token's hidden state in a chain of dependent ones (s), a large all_sum
    (bytes/s), and a matrix product (FLOP/s).

    Args:
        model: from `load`, or what `plan` takes: a folder, a configuration, or a name. Of these,
            only the form is used: bits, type, width and architecture. Nothing of it is loaded.
        rounds: how often to measure, at least 2.

    Raises:
        ModelError: on every rank, when there is no such model, the ranks were given different ones,
            or a sum of all ranks was wrong.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    form = together(lambda: _form(model, rounds))
    asked = exchange([attrs.asdict(form), rounds])
    if any(each != asked[0] for each in asked):
        other = next(rank for rank, each in enumerate(asked) if each != asked[0])
        raise ModelError(
            f"Rank {other} was asked to calibrate for something else than rank 0.",
            why="the model or the number of rounds depends on the rank",
            do="give all ranks the same",
        )
    # The state is one key of two 32-bit words, and seed(n) writes n into these words. What a rank
    # draws here must not make it sample other tokens than its peers afterwards.
    high, low = mx.random.state[0].tolist()  # type: ignore[index]
    try:
        probes = _probes(form, group)
        times = _rounds(probes, rounds, group)
    finally:
        mx.random.seed(high << 32 | low)
        mx.clear_cache()
    return _record(form, probes, times)


# -- what to measure -------------------------------------------------------------------------------


def _form(model: Any, rounds: int) -> _Form:
    from .model import find

    if rounds < 2:
        raise ModelError(
            f"{rounds} rounds are too few.",
            why="a spread needs two measurements at least",
            do=f"leave rounds out: it is {ROUNDS} then",
        )
    if isinstance(model, LoadedModel):
        name, config = model.path.name, model.config
    else:
        found = find(dict(model) if isinstance(model, Mapping) else model)
        name, config = found.name, found.config
    text = text_config(config)
    dtype = str(text.get("torch_dtype") or text.get("dtype") or "bfloat16")
    if isinstance(model, LoadedModel):
        dtype = _dtype_of(model)
    quantization = text.get("quantization")
    if quantization:
        keys = ("group_size", "bits", "mode")
        quantization = {key: quantization[key] for key in keys if key in quantization}
    experts = any("experts" in key and isinstance(value, int) and value > 1
                  for key, value in text.items())  # fmt: skip
    return _Form(
        model=name,
        kind=str(config["model_type"]),
        experts=experts,
        hidden=int(text.get("hidden_size") or text.get("n_embd") or MOST_SIDE),
        dtype=dtype,
        quantization=quantization or None,
    )


def _dtype_of(loaded: LoadedModel) -> str:
    """The floating type that most bytes of a model have: of its weights, or of their scales."""
    import mlx.core as mx

    sizes: dict[str, int] = {}
    for value in arrays(loaded.model).values():
        if mx.issubdtype(value.dtype, mx.floating):
            name = str(value.dtype).rpartition(".")[2]
            sizes[name] = sizes.get(name, 0) + value.nbytes
    return max(sizes, key=lambda name: sizes[name], default="bfloat16")


@attrs.frozen
class _Probes:
    """What each round runs, and the amounts behind the times.

    `read_bytes` are the bytes of weights that `read` goes through, `plain_bytes` those of `plain`,
    which are not quantised, `product_flops` the operations of `product`; `layers` counts those of
    the shallow and the deep model.
    """

    read: Callable[[], None]
    read_bytes: int
    plain: Callable[[], None]
    plain_bytes: int
    nothing: Callable[[], None]
    product: Callable[[], None]
    product_flops: int
    shallow: Callable[[], float]
    deep: Callable[[], float]
    layers: tuple[int, int]
    architecture: str
    chain: Callable[[bool], None]
    large: Callable[[], None]
    size: int


def _probes(form: _Form, group: Any) -> _Probes:
    import mlx.core as mx

    dtype = getattr(mx, form.dtype, mx.bfloat16)
    matrices, side = _matrices(form, dtype)
    token = mx.ones((1, 1, side), dtype)
    unquantised, width = (matrices, side)
    if form.quantization is not None:
        unquantised, width = _matrices(attrs.evolve(form, quantization=None), dtype)
    wide = mx.ones((1, 1, width), dtype)

    product, flops = _product(form, dtype)
    architecture, shallow, deep = _models(form)
    size = group.size()
    start = mx.full((1, 1, form.hidden), group.rank() + 1, dtype)
    rows = mx.full((LARGE // 4 // 1024, 1024), group.rank() + 1, mx.float32)
    mx.eval(token, wide, start, rows)

    def chain(sums: bool) -> None:
        value = start
        for _ in range(CHAIN):
            # The mean of 1 to size, and size times it, are exact in every type.
            value = (mx.distributed.all_sum(value, group=group) if sums else value) / size
        mx.eval(value)
        if sums and not mx.all(value == (size + 1) / 2).item():
            raise _wrong_sum(value.max().item(), (size + 1) / 2)

    def large() -> None:
        value = mx.distributed.all_sum(rows, group=group)
        mx.eval(value)
        if not mx.all(value == size * (size + 1) / 2).item():
            raise _wrong_sum(value.max().item(), size * (size + 1) / 2)

    return _Probes(
        read=functools.partial(_multiply, matrices, token),
        read_bytes=sum(count for _, count in matrices),
        plain=functools.partial(_multiply, unquantised, wide),
        plain_bytes=sum(count for _, count in unquantised),
        nothing=lambda: mx.eval(token + 1),
        product=product,
        product_flops=flops,
        shallow=lambda: _seconds_a_token(shallow),
        deep=lambda: _seconds_a_token(deep),
        layers=(len(shallow.layers), len(deep.layers)),
        architecture=architecture,
        chain=chain,
        large=large,
        size=size,
    )


def _wrong_sum(found: Any, expected: float) -> ModelError:
    return ModelError(
        f"A sum of all ranks was {found}, and should have been {expected}.",
        why="a rank put in something else, or the link changes what it carries",
        do="%cluster restart, then `%cluster start --checked` to compare every collective",
    )


def _matrix(form: _Form, dtype: mx.Dtype, side: int) -> _Matrix:
    """A product with a square matrix in the form of the model's weights, and its bytes."""
    import mlx.core as mx

    weight = mx.random.uniform(-1, 1, (side, side)).astype(dtype)
    if form.quantization is None:
        mx.eval(weight)
        return (lambda value: value @ weight.T), weight.nbytes
    options = dict(form.quantization)
    parts = mx.quantize(weight, **options)
    mx.eval(parts)

    def multiply(value: mx.array) -> mx.array:
        return mx.quantized_matmul(value, *parts, transpose=True, **options)

    return multiply, sum(part.nbytes for part in parts)


def _multiply(matrices: Sequence[_Matrix], value: mx.array) -> None:
    import mlx.core as mx

    mx.eval([multiply(value) for multiply, _ in matrices])


def _matrices(form: _Form, dtype: mx.Dtype) -> tuple[list[_Matrix], int]:
    """So many and so large matrices that reading them takes LONG_ENOUGH on every rank."""
    import mlx.core as mx

    side = LEAST_SIDE
    while True:
        made = [_matrix(form, dtype, side)]
        took = _slowest(functools.partial(_multiply, made, mx.ones((1, 1, side), dtype)))
        if took >= LONG_ENOUGH or side == MOST_SIDE:
            break
        side *= 2
    count = min(int(LONG_ENOUGH / took) + 1, MOST_BYTES // made[0][1])
    made += [_matrix(form, dtype, side) for _ in range(count - 1)]
    return made, side


def _product(form: _Form, dtype: mx.Dtype) -> tuple[Callable[[], None], int]:
    """A matrix product as a prompt makes them, large enough to take a while; and its operations."""
    import mlx.core as mx

    side, rows = LEAST_SIDE, 16
    while True:
        prompt = mx.ones((1, rows, side), dtype)
        mx.eval(prompt)
        work = functools.partial(_multiply, [_matrix(form, dtype, side)], prompt)
        took = _slowest(work)
        if took >= LONG_ENOUGH or (rows, side) == (MOST_PROMPT, MOST_SIDE):
            return work, 2 * rows * side * side
        rows, side = (2 * rows, side) if rows < MOST_PROMPT else (rows, 2 * side)


def _slowest(work: Callable[[], None]) -> float:
    """Seconds of the second time on the slowest rank. A collective."""
    work()
    began = time.perf_counter()
    work()
    return float(max(1e-6, *exchange(time.perf_counter() - began)))


# -- the time of a layer ---------------------------------------------------------------------------


def _models(form: _Form) -> tuple[str, Any, Any]:
    """Two models of the same architecture, with next to nothing to read; one has more layers."""
    # What one rank cannot run, none takes: the first rank says.
    kind, dtype = by_one(lambda: _running(form), _rank())
    made = [_tiny(form, kind, dtype, times) for times in (1, DEEPER)]
    name = kind if dtype == form.dtype else f"{kind} in {dtype}"
    return name, made[0], made[1]


def _rank() -> int:
    import mlx.core as mx

    return int(mx.distributed.init().rank())


def _running(form: _Form) -> tuple[str, str]:
    """The architecture and the type of a tiny model that runs here, as near as can be.

    Some need Metal, of some the depth cannot be changed, and some types are not for CPUs.
    """
    kinds = [form.kind] if form.kind in tiny.ARCHITECTURES else []
    kinds += [EXPERTS, DENSE] if form.experts else [DENSE]
    tries = [(kind, dtype) for kind in kinds for dtype in (form.dtype, "float32")]
    for kind, dtype in tries[:-1]:
        try:
            for times in (1, DEEPER):
                _seconds_a_token(_tiny(form, kind, dtype, times))
        except Exception:
            continue
        return kind, dtype
    return tries[-1]


def _tiny(form: _Form, kind: str, dtype: str, times: int) -> Any:
    """The tiny model of an architecture with so many times its layers, stored as the real one."""
    import mlx.core as mx

    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((tiny.make(kind, folder) / "config.json").read_text())
    text = config.get("text_config", config)
    names = [name for name in ("num_hidden_layers", "num_layers") if name in text]
    depth = text[names[0]]
    # Lists of that length say something about each layer.
    longer: dict[str, Any] = {
        name: value * times if isinstance(value, list) and len(value) == depth else value
        for name, value in text.items()
    }
    longer |= dict.fromkeys(names, times * depth)
    longer |= {"torch_dtype": dtype, "dtype": dtype}
    if form.quantization is not None and "quantization" not in config:
        longer["quantization"] = form.quantization
    if "text_config" in config:
        config = {**config, "text_config": longer, "torch_dtype": dtype}
    else:
        config = longer
    model, _ = paper_model(config)
    mx.eval(model.parameters())
    return model


def _seconds_a_token(model: Any) -> float:
    """Of mlx-lm's own loop, which computes one token ahead."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    stream = decoding_stream()
    tokens = generate_step(mx.array([1, 2]), model, stream, max_tokens=TOKENS + 2)
    next(tokens)
    next(tokens)
    began = time.perf_counter()
    for _ in range(TOKENS - 1):
        next(tokens)
    took = time.perf_counter() - began
    tokens.close()
    mx.synchronize(stream)
    return took / (TOKENS - 1)


# -- measuring -------------------------------------------------------------------------------------


def _rounds(probes: _Probes, rounds: int, group: Any) -> dict[str, list[float]]:
    """The seconds of each measurement, by name. Rank 0 shows how far it is."""
    import mlx.core as mx

    works: dict[str, Callable[[], Any]] = {
        "nothing": probes.nothing,
        "read": probes.read,
        "plain": probes.plain,
        "product": probes.product,
        "shallow": probes.shallow,
        "deep": probes.deep,
    }
    if probes.size > 1:
        works["unchained"] = lambda: probes.chain(False)
        works["chain"] = lambda: probes.chain(True)
        works["large"] = probes.large
    times: dict[str, list[float]] = {name: [] for name in works}
    progress = Progress(shown=group.rank() == 0)
    for number in steps(range(WARM_UP + rounds)):
        failures: list[ModelError] = []
        for name, work in works.items():
            # All ranks at the same time: ranks of one machine share it, as they will do later.
            mx.eval(mx.distributed.all_sum(mx.array(1), group=group))
            start = time.perf_counter()
            try:
                found = work()
            except ModelError as error:
                # A wrong sum. The others may have the right one, and are on their way.
                failures.append(error)
                continue
            took = time.perf_counter() - start
            if number >= WARM_UP:
                times[name].append(took if found is None else found)
        together(functools.partial(_raise_first, failures))
        done = number + 1
        total = WARM_UP + rounds
        progress.at(f"calibrating: round {done} of {total}", done / total)
    progress.done(f"calibrated in {progress.seconds:.1f} s, {rounds} rounds")
    return times


def _raise_first(errors: list[ModelError]) -> None:
    if errors:
        raise errors[0]


def _record(form: _Form, probes: _Probes, times: dict[str, list[float]]) -> Measured:
    """Of all ranks. A collective."""
    import mlx.core as mx

    # Evaluating anything at all takes a while on a GPU; it is not part of reading or multiplying.
    idle = statistics.median(times["nothing"])
    shallow, deep = probes.layers
    layers = [
        max(more - less, 0.0) / (deep - shallow)
        for less, more in zip(times["shallow"], times["deep"], strict=True)
    ]
    layer = statistics.median(layers)
    mine: dict[str, list[float]] = {
        "bandwidth": [probes.read_bytes / _beyond(each, idle) for each in times["read"]],
        "plain": [probes.plain_bytes / _beyond(each, idle) for each in times["plain"]],
        "prefill": [probes.product_flops / _beyond(each, idle) for each in times["product"]],
        "layer": layers,
        "token": [max(each - shallow * layer, 0.0) for each in times["shallow"]],
    }
    if probes.size > 1:
        without = statistics.median(times["unchained"])
        mine["latency"] = [_beyond(each, without) / CHAIN for each in times["chain"]]
        latency = statistics.median(mine["latency"])
        mine["sums"] = [LARGE / _beyond(each, latency) for each in times["large"]]
    on_gpu = mx.default_device() == mx.gpu
    device = "CPU" if not on_gpu else "metal" if mx.metal.is_available() else "cuda"
    spreads = {name: attrs.asdict(Spread.of(values)) for name, values in mine.items()}
    found = exchange([socket.gethostname(), spreads])
    sharing = [host for host, _ in found].count(socket.gethostname())
    memory = exchange(host_memory(sharing, on_gpu))
    ranks = tuple(
        RankSpeed(
            host=host,
            memory=memory[rank],
            **{
                name: Spread(**each[name])
                for name in ("bandwidth", "plain", "layer", "token", "prefill")
            },
        )
        for rank, (host, each) in enumerate(found)
    )
    # A sum ends on all ranks when the last one has it, so the slowest rank's times count.
    sums = [each for _, each in found if "latency" in each]
    return Measured(
        model=form.model,
        weights=form.words,
        architecture=probes.architecture,
        hidden=form.hidden,
        device=device,
        ranks=ranks,
        latency=Spread(**max((each["latency"] for each in sums), key=_median)) if sums else None,
        sums=Spread(**min((each["sums"] for each in sums), key=_median)) if sums else None,
    )


def _median(spread: Mapping[str, float]) -> float:
    return spread["median"]


def _beyond(seconds: float, other: float) -> float:
    """What is left of some seconds, at least a tenth: noise must not make a speed infinite."""
    return max(seconds - other, seconds / 10)
