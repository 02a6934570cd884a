"""Who holds what: every parameter of a loaded model, on every rank, in exact bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..errors import ModelError
from ..hostfile import describe_ranks
from ..tables import Table
from ..units import bytes_text
from .agree import exchange, together
from .folder import Shape, shapes
from .splitting import Split
from .trial import cache_size

if TYPE_CHECKING:
    from .load import LoadedModel

Kind = Literal["split", "replicated", "absent"]
Family = Literal["attention", "MLP", "experts", "norms", "other"]
Holding = Literal["split", "whole", "copy", "none"]

CONTEXT = 4096  # tokens
WIDTH = 100  # characters
BEFORE, BEHIND = -1, 1 << 30  # places in the model, beside the numbers of its layers
COLUMNS = 4  # more ranks than this do not get a column each: the table has WIDTH


@attrs.frozen
class ShardRow:
    """What one rank holds of one parameter.

    `layer` is None outside the layers, `module` is the path within the layer (`self_attn.q_proj`),
    `parameter` the full name, `bytes` what lies on this rank, `axis` the dimension along which a
    "split" parameter is cut.
    """

    rank: int
    layer: int | None
    module: str
    parameter: str
    bytes: int
    kind: Kind
    axis: int | None


@attrs.frozen
class Group:
    """One line of the table: modules that are split alike, in all layers that look the same."""

    layers: str
    modules: str
    split: str
    bytes: tuple[int | None, ...]  # of each rank; None where absent


@attrs.frozen
class Room:
    """The memory of one rank: bytes of `cache` for a whole context, and how many it may fill.

    `limit` counts the weights and the cache, too; `of` says in words what it is of. Both are None
    or empty where they are not known.
    """

    cache: int | None = None
    limit: int | None = None
    of: str = ""


@attrs.frozen
class Piece:
    """What one rank holds of one family of modules, in one place of the model.

    `holding` is that of most bytes: "split", a "whole" that no other rank has, a "copy" of what
    others have as well, or "none". `split` is in the words of the table: "axis 0, whole".
    """

    family: Family
    holding: Holding
    bytes: int
    split: str


@attrs.frozen
class Place:
    """One place of the model on every rank: a layer, or what stands before or behind all layers."""

    label: str
    layer: int | None
    pieces: tuple[tuple[Piece, ...], ...]  # of each rank, in the order of the model


@attrs.frozen(eq=False, repr=False)
class ShardMap:
    """The sharding map of a model. Made by `shards`; prints as a table, `rows` is for programs.

    `whole_bytes` is the size of the model on one rank, `rooms` the memory of each rank with a
    cache of `context` tokens; empty where nobody asked.
    """

    rows: tuple[ShardRow, ...]
    title: str
    size: int
    whole_bytes: int
    rooms: tuple[Room, ...] = ()
    context: int = CONTEXT

    def totals(self) -> list[int]:
        """Bytes on each rank."""
        totals = [0] * self.size
        for row in self.rows:
            totals[row.rank] += row.bytes
        return totals

    def places(self) -> list[Place]:
        """The map as a picture shows it: place after place, and what each rank holds there."""
        return _places(self.rows, self.size)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values; `read_map` makes a ShardMap of them again."""
        parameters: dict[str, list[list[Any]]] = {}
        for row in self.rows:
            part = [row.rank, row.bytes, row.kind, row.axis]
            parameters.setdefault(row.parameter, []).append(part)
        return {
            "title": self.title,
            "size": self.size,
            "whole_bytes": self.whole_bytes,
            "rooms": [attrs.astuple(room) for room in self.rooms],
            "context": self.context,
            "parameters": parameters,
        }

    def _table(self) -> Table:
        head = ["layers", "modules", "split"]
        if self.size <= COLUMNS:
            ranks = range(len(head), len(head) + self.size)
            head += [f"rank {rank}" for rank in range(self.size)]
        else:
            ranks = range(0)
            head.append("held by")
        lines = [
            [group.layers, group.modules, group.split, *_held(group.bytes)]
            for group in groups(self.rows, self.size)
        ]
        last = ["", "total", "", *_held(self.totals())]
        return Table(head, lines, right=ranks, title=self.title, last=last, unbroken=ranks)

    def __repr__(self) -> str:
        return self._table().text(WIDTH)

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


@attrs.frozen
class Part:
    """What one rank holds of one parameter; the same facts as in a ShardRow."""

    parameter: str
    bytes: int
    kind: Kind
    axis: int | None


def shards(loaded: LoadedModel, *, context: int | None = None) -> ShardMap:
    """Find out who holds which weights. Every rank must call it; all get the whole map.

    The shapes on each rank are compared with those of the same model before it was split; no
    weight is read.

    Args:
        context: the tokens of the cache whose size the map tells; by default 4096, or as many as
            the model was made for, if these are fewer.

    Raises:
        ModelError: on every rank, when one of them fails.
    """
    if context is None:
        most = loaded.text_config.get("max_position_embeddings")
        context = min(CONTEXT, most) if isinstance(most, int) else CONTEXT
    from .load import counts_loaded, memory_budgets

    found = together(lambda: {**part_facts(loaded), "cache": _cache_here(loaded, context)})
    facts = exchange([found["parts"], found["cache"], counts_loaded()])
    parts = [[Part(*part) for part in each] for each, _, _ in facts]
    drawn = shard_map(loaded.config["model_type"], loaded.split, found["whole"], parts)
    rooms = tuple(
        Room(cache, budget.bytes + (0 if counted else weights), budget.of)
        for (_, cache, counted), budget, weights in zip(
            facts, memory_budgets(), drawn.totals(), strict=True
        )
    )
    return attrs.evolve(drawn, rooms=rooms, context=context)


def read_map(facts: Mapping[str, Any]) -> ShardMap:
    """A ShardMap that came as JSON."""
    rows = [
        ShardRow(rank, *_place(name), name, count, kind, axis)
        for name, parts in facts["parameters"].items()
        for rank, count, kind, axis in parts
    ]
    return ShardMap(
        rows=tuple(sorted(rows, key=lambda row: row.rank)),
        title=facts["title"],
        size=facts["size"],
        whole_bytes=facts["whole_bytes"],
        rooms=tuple(Room(*room) for room in facts["rooms"]),
        context=facts["context"],
    )


def _cache_here(loaded: LoadedModel, context: int) -> int | None:
    """The bytes of this rank's cache; None for a model that cannot be tried out on shapes."""
    with contextlib.suppress(ModelError):
        return cache_size(loaded.model, loaded.size).bytes(context)
    return None


def shard_map(
    kind: str, split: Split, whole_bytes: int, parts: Sequence[Sequence[Part]]
) -> ShardMap:
    """The map of a model of this kind, from the parts of each rank."""
    rows = tuple(
        ShardRow(rank, *_place(part.parameter), part.parameter, part.bytes, part.kind, part.axis)
        for rank, each in enumerate(parts)
        for part in each
    )
    title = f"{kind}, {bytes_text(whole_bytes)}: {split.reason}"
    return ShardMap(rows=rows, title=title, size=len(parts), whole_bytes=whole_bytes)


def part_facts(loaded: LoadedModel) -> dict[str, Any]:
    """The whole model's bytes, and this rank's part of each parameter; nothing is computed."""
    parts = [attrs.astuple(part) for part in compare(loaded.whole, shapes(loaded.model))]
    return {"whole": sum(full.nbytes for full in loaded.whole.values()), "parts": parts}


def compare(whole: Mapping[str, Shape], here: Mapping[str, Shape]) -> list[Part]:
    """What `here` has of each parameter of `whole`, by their shapes."""
    found = []
    for name, full in whole.items():
        part = here.get(name)
        if part is None:
            found.append(Part(name, 0, "absent", None))
        elif part.shape == full.shape:
            found.append(Part(name, part.nbytes, "replicated", None))
        else:
            pairs = enumerate(zip(part.shape, full.shape, strict=True))
            axis = next(index for index, (mine, all_) in pairs if mine != all_)
            found.append(Part(name, part.nbytes, "split", axis))
    # What was added after loading, such as an adapter, is whole on each rank.
    found += [
        Part(name, part.nbytes, "replicated", None)
        for name, part in here.items()
        if name not in whole
    ]
    return found


def _place(name: str) -> tuple[int | None, str]:
    """(layer, module): "model.layers.3.mlp.up_proj.weight" is (3, "mlp.up_proj")."""
    parts = name.split(".")[:-1]
    for index, part in enumerate(parts[:-1]):
        if part == "layers" and parts[index + 1].isdigit():
            return int(parts[index + 1]), ".".join(parts[index + 2 :])
    return None, ".".join(parts)


# -- the picture -----------------------------------------------------------------------------------


def _places(rows: Sequence[ShardRow], size: int) -> list[Place]:
    holders: dict[str, int] = {}
    for row in rows:
        holders[row.parameter] = holders.get(row.parameter, 0) + (row.kind != "absent")
    # What stands before the first layer is the way in, the rest is the way out.
    where: dict[str, int] = {}
    found: dict[int, list[ShardRow]] = {}
    for row in rows:
        if row.parameter not in where:
            behind = _is_behind(row, any(0 <= place < BEHIND for place in where.values()))
            outside = BEHIND if behind else BEFORE
            where[row.parameter] = outside if row.layer is None else row.layer
        found.setdefault(where[row.parameter], []).append(row)
    places = []
    for place in sorted(found):
        mine: list[dict[Family, list[ShardRow]]] = [{} for _ in range(size)]
        for row in found[place]:
            mine[row.rank].setdefault(_family(row), []).append(row)
        pieces = tuple(
            tuple(_piece(family, each, holders) for family, each in families.items())
            for families in mine
        )
        outside = place in (BEFORE, BEHIND)
        names = dict.fromkeys(row.module.rpartition(".")[2] for row in found[place])
        label = ", ".join(names) if outside else f"layer {place}"
        places.append(Place(label, None if outside else place, pieces))
    return places


def _piece(family: Family, rows: Sequence[ShardRow], holders: Mapping[str, int]) -> Piece:
    split = sum(row.bytes for row in rows if row.kind == "split")
    full = [row for row in rows if row.kind == "replicated"]
    bytes_ = split + sum(row.bytes for row in full)
    holding: Holding = "none"
    if split > bytes_ - split:
        holding = "split"
    elif full:
        largest = max(full, key=lambda row: row.bytes)
        holding = "whole" if holders[largest.parameter] == 1 else "copy"
    return Piece(family, holding, bytes_, _split_text(rows))


def _is_behind(row: ShardRow, seen_layer: bool) -> bool:
    # Some models list their layers before the embedding.
    return seen_layer and "embed" not in row.module and "wte" not in row.module


def _family(row: ShardRow) -> Family:
    """What a module is for, by the names that mlx-lm's models use."""
    if row.layer is None:
        return "other"
    name = row.module.lower()
    if "shared" not in name and ("switch" in name or "expert" in name):
        return "experts"
    if any(word in name for word in ("mlp", "feed_forward", "ffn", "moe", "expert")):
        return "MLP"
    if "attn" in name or "attention" in name.partition(".")[0]:
        return "attention"
    return "norms" if "norm" in name else "other"


# -- the table -------------------------------------------------------------------------------------


def groups(rows: Sequence[ShardRow], size: int) -> list[Group]:
    """The lines of the table, in the order of the model.

    In a layer, modules of one parent that are split alike make one line. Layers whose lines are all
    equal are added up.
    """
    # Outside of the layers each module stands for itself.
    blocks: dict[int | str, dict[str, list[ShardRow]]] = {}
    for row in rows:
        block = blocks.setdefault(row.module if row.layer is None else row.layer, {})
        block.setdefault(row.module, []).append(row)
    alike: dict[tuple[Group, ...], list[int | str]] = {}
    for place, modules in blocks.items():
        alike.setdefault(tuple(_lines(modules, size)), []).append(place)
    table: list[Group] = []
    for lines, places in alike.items():
        label = _spans([place for place in places if isinstance(place, int)])
        for line in lines:
            counts = tuple(None if n is None else n * len(places) for n in line.bytes)
            table.append(attrs.evolve(line, layers=label, bytes=counts))
            label = ""
    return table


def _lines(modules: dict[str, list[ShardRow]], size: int) -> list[Group]:
    """The lines of one layer, or of one module outside of them."""
    merged: dict[tuple[str, str, tuple[bool, ...]], tuple[list[str], list[int]]] = {}
    for module, rows in modules.items():
        parent, _, name = module.rpartition(".")
        counts = [0] * size
        held = [False] * size
        for row in rows:
            counts[row.rank] += row.bytes
            held[row.rank] |= row.kind != "absent"
        names, sums = merged.setdefault((parent, _split_text(rows), tuple(held)), ([], [0] * size))
        names.append(name)
        sums[:] = [a + b for a, b in zip(sums, counts, strict=True)]
    lines = []
    for (parent, split, held_by), (names, sums) in merged.items():
        label = " ".join(names) if not parent else f"{parent}.{names[0]}"
        if parent and len(names) > 1:
            label = f"{parent}: {' '.join(names)}"
        shown = tuple(n if held else None for n, held in zip(sums, held_by, strict=True))
        lines.append(Group("", label, split, shown))
    return lines


def _held(counts: Sequence[int | None]) -> list[str]:
    """The cells that say how much each rank holds: one a rank, or one for all of many ranks."""
    if len(counts) <= COLUMNS:
        return ["-" if count is None else bytes_text(count) for count in counts]
    alike: dict[int, list[int]] = {}
    for rank, count in enumerate(counts):
        if count is not None:
            alike.setdefault(count, []).append(rank)
    texts = []
    for count, ranks in alike.items():
        each = " each" if len(ranks) > 1 else ""
        texts.append(f"{describe_ranks(ranks)}: {bytes_text(count)}{each}")
    return ["; ".join(texts)]


def _split_text(rows: Iterable[ShardRow]) -> str:
    """ "axis 0", "whole", or both: "axis 1, whole" for a whole bias beside a split weight."""
    axes = sorted({row.axis for row in rows if row.axis is not None})
    words = [f"axis {axis}" for axis in axes]
    if any(row.kind == "replicated" for row in rows):
        words.append("whole")
    return ", ".join(words)


def _spans(numbers: Sequence[int]) -> str:
    """ "0-3", "0-2, 6"; "0 ... 58 (20)" when there are more than three spans."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    if len(spans) > 3:
        return f"{spans[0][0]} ... {spans[-1][1]} ({len(numbers)})"
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in spans)
