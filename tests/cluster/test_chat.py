"""Conversations, batches, and the proof that a split model says what the whole one says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import macluster
from macluster.engine.files import running
from macluster.engine.models import tiny
from tests.cluster.faults import KILL, SUM, end_of
from tests.cluster.models import ENV, TIMEOUT, answers, fails, start
from tests.cluster.notebook import Notebook
from tests.cluster.processes import PATIENCE

TOY = str(tiny.toy_path())
FRANCE, JAPAN = "What is the capital of France?", "And what is the capital of Japan?"
COUNT = "Count from 1 to 15."
COUNTED = ", ".join(map(str, range(1, 16))) + "."


@pytest.fixture(scope="module")
def two() -> Iterator[macluster.World]:
    yield from start(2)


@pytest.fixture(params=["tensor", "pipeline"])
def model(two: macluster.World, request: pytest.FixtureRequest) -> macluster.World:
    two.run(f"model = macluster.load({TOY!r}, {request.param!r})").result(TIMEOUT)
    return two


# -- conversations ---------------------------------------------------------------------------------


def said(world: macluster.World, code: str) -> list[Any]:
    """The answers of `code`, which ends in a list of Answers, the same on all ranks."""
    fields = "[[a.text, a.tokens, a.prompt_tokens, a.reused, a.context] for a in turns]"
    found = answers(world, f"{code}\nprint(json.dumps({fields}))")
    assert found == [found[0]] * world.size
    turns: list[Any] = found[0]
    return turns


def test_a_conversation_computes_only_what_is_new(model: macluster.World) -> None:
    turns = said(
        model,
        f"chat = macluster.Chat(model)\nturns = [chat.say({FRANCE!r}), chat.say({JAPAN!r})]",
    )
    assert [turn[0] for turn in turns] == [
        "The capital of France is Paris.",
        "The capital of Japan is Tokyo.",
    ]
    (_, _, first, reused, context), (_, _, second, kept, _) = turns
    assert reused == 0
    assert kept > first
    # All of the first turn but for the end of its answer, which was not fed back.
    assert context - 2 <= kept <= context
    whole = said(
        model,
        "again = macluster.Chat(model)\nagain.messages = chat.messages[:2]\n"
        f"turns = [again.say({JAPAN!r})]",
    )
    assert whole[0][0] == turns[1][0]
    assert whole[0][2] == second + kept


def test_a_conversation_whose_past_is_edited_is_cut_back(model: macluster.World) -> None:
    turns = said(
        model,
        f"chat = macluster.Chat(model)\nturns = [chat.say({FRANCE!r})]\n"
        "chat.messages[-1]['content'] = 'It is Rome.'\n"
        f"turns += [chat.say({JAPAN!r})]\n"
        "fresh = macluster.Chat(model)\nfresh.messages = [dict(m) for m in chat.messages[:2]]\n"
        f"turns += [fresh.say({JAPAN!r})]",
    )
    assert 0 < turns[1][3] < turns[1][2] + turns[1][3]
    assert turns[1][0] == turns[2][0]


def test_an_interrupted_answer_leaves_a_conversation_that_goes_on(model: macluster.World) -> None:
    before = model.epoch
    cell = model.run(
        "import threading\nchat = macluster.Chat(model)\n"
        f"for part in chat.stream({COUNT!r}, max_tokens=-1, logits_processors=[lambda _, logits: "
        "mx.where(mx.arange(logits.shape[-1]) == model.tokenizer.eos_token_id, -mx.inf, logits)]):"
        "\n    pass"
    )

    def under_way() -> bool:
        moments = [answer["moment"] for answer in model.where().values()]
        return len(moments) == 2 and all(moment and moment[-1] >= 3 for moment in moments)

    while not under_way():
        assert not cell.wait(0.02)
    cell.cancel()
    end_of(cell)
    assert model.epoch == before
    lengths = answers(
        model, "print(json.dumps([len(chat._held), chat.last.finish_reason, len(chat.messages)]))"
    )
    assert lengths[0] == lengths[1]
    assert lengths[0][0] > 3
    assert lengths[0][1:] == ["interrupted", 2]
    # What goes on is what a new conversation with the same past would be.
    turns = said(
        model,
        "fresh = macluster.Chat(model)\nfresh.messages = list(chat.messages)\n"
        "turns = [each.say('What is 3 plus 4?') for each in (chat, fresh)]\n"
        "assert len(chat._held) == chat._cache[0].offset == len(fresh._held)\n"
        "assert mx.allclose(chat._cache[0].keys[..., :20, :], fresh._cache[0].keys[..., :20, :], "
        "atol=1e-4) if chat._cache else True",
    )
    assert turns[0][0] == turns[1][0]
    assert turns[0][3] > turns[1][3] == 0


def test_a_turn_that_fails_leaves_no_trace(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
    said(two, f"chat = macluster.Chat(model)\nturns = [chat.say({FRANCE!r})]")
    assert "max_tokens=0" in fails(two, "chat.say('x', max_tokens=0)")
    assert answers(two, "print(json.dumps(len(chat.messages)))") == [2, 2]


def test_a_turn_that_fails_on_one_rank_is_dropped_on_all(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
    said(two, f"chat = macluster.Chat(model)\nturns = [chat.say({FRANCE!r})]")
    cell = two.run(
        f"for number, part in enumerate(chat.stream({JAPAN!r})):\n"
        "    if rank == 1 and number == 1:\n        raise ValueError('enough')"
    )
    cell.wait()
    with pytest.raises(macluster.CellError, match="enough"):
        cell.check()
    # The one that failed left its answer early; the other was freed in the middle of a step.
    assert answers(two, "print(json.dumps(len(chat.messages)))") == [2, 4]
    turns = said(two, f"turns = [chat.say({JAPAN!r})]")
    assert [turn[0] for turn in turns] == ["The capital of Japan is Tokyo."]
    assert answers(two, "print(json.dumps(len(chat.messages)))") == [4, 4]


def test_conversations_that_differ_are_told_of(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
    said(two, f"chat = macluster.Chat(model)\nturns = [chat.say({FRANCE!r})]")
    text = fails(two, "if rank: chat.messages[0]['content'] = 'Hi'\nchat.say('Hello')")
    assert text.startswith("Rank 1 holds another conversation than rank 0.")
    assert "chat.reset()" in text


def test_a_rank_that_is_started_anew_takes_part_in_the_conversation(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
    said(two, f"chat = macluster.Chat(model, max_tokens=99)\nturns = [chat.say({FRANCE!r})]")
    end_of(two.run(f"import os, signal\nif rank == 1:\n    {KILL.code}\n{SUM}"))
    turns = said(
        two,
        f"chat = globals().get('chat') or macluster.Chat(model)\nturns = [chat.say({JAPAN!r})]",
    )
    assert turns[0][0] == "The capital of Japan is Tokyo."
    assert turns[0][3] == 0
    assert (
        answers(two, "print(json.dumps([len(chat.messages), chat.options]))")
        == [[4, {"max_tokens": 99}]] * 2
    )


def test_a_conversation_is_saved_and_goes_on(model: macluster.World, tmp_path: Path) -> None:
    folder = str(tmp_path / "talk")
    turns = said(
        model,
        f"chat = macluster.Chat(model)\nturns = [chat.say({FRANCE!r})]\nchat.save({folder!r})\n"
        f"other = macluster.Chat(model)\nother.restore({folder!r})\n"
        f"turns += [chat.say({JAPAN!r}), other.say({JAPAN!r})]",
    )
    assert turns[1] == turns[2]
    assert turns[2][3] > 0
    assert sorted(os.listdir(folder)) == ["rank-0-of-2.safetensors", "rank-1-of-2.safetensors"]
    other = answers(model, "print(json.dumps(model.strategy))")[0]
    other = "pipeline" if other == "tensor" else "tensor"
    text = fails(
        model,
        f"macluster.Chat(macluster.load({TOY!r}, {other!r})).restore({folder!r})",
    )
    assert "was held with another model or split" in text
    assert f"its strategy is {'tensor' if other == 'pipeline' else 'pipeline'}" in text


def test_ranks_that_are_told_different_things_are_stopped(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})\nchat = macluster.Chat(model)").result(TIMEOUT)
    assert "another prompt" in fails(two, "chat.say('One' if rank else 'Two')")


# -- many at once ----------------------------------------------------------------------------------


def test_a_batch_gives_the_answers_of_one_at_a_time(model: macluster.World) -> None:
    prompts = [FRANCE, COUNT, "What is 3 plus 4?", "What is the capital of Italy?"]
    code = (
        f"prompts = {prompts!r}\n"
        "print(json.dumps([macluster.batch_generate(model, prompts),\n"
        "                  [macluster.generate(model, each) for each in prompts]]))"
    )
    batch, alone = answers(model, code)[0]
    assert batch == alone
    assert batch[:2] == ["The capital of France is Paris.", COUNTED]


# -- trust -----------------------------------------------------------------------------------------

CHECKED = """
found = macluster.check(model, lengths=(1, 40))
print(json.dumps([found.ok, found.verdict, [row.agree for row in found.rows], repr(found)]))
"""


def test_a_split_model_is_like_the_whole_one(model: macluster.World) -> None:
    for ok, verdict, agree, text in answers(model, CHECKED):
        assert ok, verdict
        assert agree == [True, True]
        assert "8 of 8" in text


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_like_the_whole_one(
    two: macluster.World, bits: int, tmp_path: Path
) -> None:
    # In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good.
    made = [sys.executable, "-m", "macluster.engine.models.tiny", "qwen3_moe", str(tmp_path / "m")]
    subprocess.run([*made, "--bits", str(bits)], check=True, env={**os.environ, **ENV})
    two.run(f"model = macluster.load({str(tmp_path / 'm')!r})").result(TIMEOUT)
    for ok, verdict, _, _ in answers(two, CHECKED):
        assert ok, verdict


@pytest.mark.parametrize(
    "breakage",
    [
        # As if one rank had read a part of another rank's.
        "if rank: model.model.layers[1].mlp.down_proj.weight *= 1.001",
        # Both ranks compute alike, and wrong.
        "model.model.layers[1].self_attn.o_proj.weight *= 0.99",
    ],
)
def test_a_broken_shard_is_caught(two: macluster.World, breakage: str) -> None:
    two.run(f"model = macluster.load({TOY!r}, 'tensor')\n{breakage}").result(TIMEOUT)
    for ok, verdict, agree, _ in answers(two, CHECKED):
        assert not ok
        assert agree == [True, True]
        assert verdict.startswith("the split model computes something else: with ")


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_coarse_rounding_hides_no_broken_shard(
    two: macluster.World, kind: str, tmp_path: Path
) -> None:
    folder = str(tmp_path / kind)
    made = [sys.executable, "-c", COARSE, TOY, folder, kind]
    subprocess.run(made, check=True, env={**os.environ, **ENV})
    two.run(f"model = macluster.load({folder!r}, 'tensor')").result(TIMEOUT)
    for ok, verdict, _, _ in answers(two, CHECKED):
        assert ok, verdict
        assert f"as far from float32 as the whole model in {kind} is" in verdict
    two.run("if rank: model.model.layers[1].self_attn.o_proj.weight *= 1.1").result(TIMEOUT)
    for ok, verdict, _, _ in answers(two, CHECKED):
        assert not ok, verdict


ONCE_WRONG = """
from macluster.engine.models import check as checking
compare, wrong = checking._compare, {wrong}
def sometimes(*arguments):
    found = compare(*arguments)
    if wrong and found:
        wrong.pop()
        return (1.0, *found[1:])
    return found
checking._compare = sometimes
try:
    print(json.dumps(macluster.check(model, lengths=(5,)).ok))
finally:
    checking._compare = compare
"""


def test_one_prompt_that_rounding_sent_astray_is_no_verdict(
    two: macluster.World, tmp_path: Path
) -> None:
    folder = str(tmp_path / "coarse")
    made = [sys.executable, "-c", COARSE, TOY, folder, "bfloat16"]
    subprocess.run(made, check=True, env={**os.environ, **ENV})
    two.run(f"model = macluster.load({folder!r}, 'tensor')").result(TIMEOUT)
    assert answers(two, ONCE_WRONG.format(wrong="[1]")) == [True, True]
    assert answers(two, ONCE_WRONG.format(wrong="[1, 1]")) == [False, False]
    # In float32 on a CPU there is no such excuse.
    two.run(f"model = macluster.load({TOY!r}, 'tensor')").result(TIMEOUT)
    assert answers(two, ONCE_WRONG.format(wrong="[1]")) == [False, False]


COARSE = """
import json, shutil, sys
from pathlib import Path
import mlx.core as mx
source, folder, kind = sys.argv[1:]
shutil.copytree(source, folder)
file = Path(folder, "model.safetensors")
weights = {name: value.astype(getattr(mx, kind)) for name, value in mx.load(str(file)).items()}
mx.eval(weights)
mx.save_safetensors(str(file), weights)
"""


def test_lengths_that_cannot_be_checked_are_refused(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
    for lengths in ((600,), (0,), (5, 10**6)):
        assert "cannot be checked" in fails(two, f"macluster.check(model, lengths={lengths})")
    assert "No length is given" in fails(two, "macluster.check(model, lengths=())")


def test_ranks_that_disagree_are_caught(two: macluster.World) -> None:
    code = (
        f"model = macluster.load({TOY!r}, 'tensor')\nif rank: model.model.model.norm.weight *= 1.5"
    )
    two.run(code).result(TIMEOUT)
    for ok, verdict, agree, _ in answers(two, CHECKED):
        assert not ok
        assert agree == [False, False]
        assert verdict.startswith("the ranks disagree with each other")


# -- where the time goes ---------------------------------------------------------------------------

TIMED = """
before = mx.distributed.all_sum
found = macluster.token_time(model, tokens=12)
print(json.dumps([[[each.compute, each.wait, each.wire, each.collectives, each.bytes]
                   for each in found.ranks], found.timed, found.straggler, repr(found),
                  mx.distributed.all_sum is before]))
"""


def test_the_time_of_a_token_is_taken_apart(model: macluster.World) -> None:
    found = answers(model, TIMED)
    assert found[0] == found[1]
    ranks, timed, _, text, restored = found[0]
    assert restored
    assert "collectives" in text
    for compute, wait, wire, collectives, count in ranks:
        assert collectives > 0
        assert count > 0
        # Medians of the parts need not add up to the median of the whole, but nearly do.
        assert 0.5 * timed < compute[0] + wait[0] + wire[0] < 1.5 * timed
        assert compute[0] <= compute[1]


SLOW = """
class Slow:
    def __init__(self, layer):
        self.layer = layer
    def __getattr__(self, name):
        return getattr(self.layer, name)
    def __call__(self, *args, **options):
        import time
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        return self.layer(*args, **options)
if rank == 1:
    model.model.model.layers = [Slow(layer) for layer in model.model.model.layers]
"""


def test_a_rank_that_the_others_wait_for_is_named(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r}, 'tensor')\n{SLOW}").result(TIMEOUT)
    for ranks, _, straggler, text, _ in answers(two, TIMED):
        assert straggler == 1
        assert "rank 0 waits for rank 1" in text
        assert ranks[0][1][0] > ranks[1][1][0]  # rank 0 waits, rank 1 does not


# -- in a notebook, and in a terminal --------------------------------------------------------------


@pytest.fixture(scope="module")
def nb() -> Iterator[Notebook]:
    notebook = Notebook(**ENV)
    try:
        notebook.ok("%load_ext macluster")
        notebook.ok("%cluster start 2 --name chat-notebook")
        yield notebook
    finally:
        notebook.close()


def test_models_and_conversations_have_magics(nb: Notebook) -> None:
    ran = nb.run("%%chat\nHello")
    assert ran.ename == "ModelError"
    assert "There is no model named 'model' on the ranks" in ran.traceback
    loaded = nb.ok(f"%model load {TOY} --strategy pipeline --split 3,1 --context 256").text()
    assert "pipeline over 2 ranks" in loaded
    assert "pipeline, as asked for" in loaded
    assert "model: <qwen2" in nb.ok("%model list").text()
    assert "626.7 kB   296.4 kB" in nb.ok("%model shards").result
    checked = nb.ok("%model check --lengths 3,30").result
    assert "ok: the split model computes what the whole one does" in " ".join(checked.split())
    assert "% compute" in nb.ok("%model time").result
    first = nb.ok(f"%%chat\n{FRANCE}\n").text()
    assert first.startswith("The capital of France is Paris.\n[")
    assert "tokens/s, first after" in first
    assert nb.ok(f"%%chat --max-tokens 4\n{COUNT}").text().startswith("1, 2")
    assert nb.ok("%%distributed\nrprint(len(chat.messages))").text() == "4\n"
    nb.ok(f"%%chat --reset --system 'You can count.'\n{COUNT}")
    assert nb.ok("%%distributed\nrprint(len(chat.messages))").text() == "3\n"
    # None of this binds a name of ours on the ranks.
    found = nb.ok("%%distributed\nrprint([n for n in ('held', 'say', 'name') if n in globals()])")
    assert found.text() == "[]\n"
    assert "cannot be a name" in nb.run(f"%model load {TOY} --name rank").evalue
    assert "There is nothing to say" in nb.run("%%chat\n ").evalue
    planned = nb.ok(f"%model plan {TOY} '2 x M3 Ultra 512GB, mesh' --context 512").result
    assert "tensor" in planned
    assert "Predicted, not measured" in planned
    assert "%model has no verb 'lod'" in nb.run("%model lod x").evalue
    assert nb.complete("%model sh")["matches"] == ["shards"]
    assert nb.complete("%model load x --str")["matches"] == ["--strategy"]


def test_an_interrupt_does_not_lose_a_first_turn(nb: Notebook) -> None:
    nb.ok(f"%model load {TOY}")
    nb.ok("%%distributed\nmodel.tokenizer.eos_token_ids = {511}")  # it never says that
    sent = nb.send(f"%%chat --chat talk --max-tokens 100000\n{COUNT}")
    nb.wait_for_output(sent, "1")
    nb.interrupt()
    assert not nb.finish(sent).ok
    assert nb.ok("%%distributed\nrprint(len(talk.messages))").text() == "2\n"


def test_a_conversation_in_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "macluster", "chat", "--model", TOY, "-n", "2", "--pipeline"],
        input=f"{FRANCE}\n\n{JAPAN}\n/reset\n{COUNT}\n",
        env={**os.environ, **ENV},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("[")]
    assert lines[-3:] == [
        "The capital of France is Paris.",
        "The capital of Japan is Tokyo.",
        COUNTED,
    ]
    assert "pipeline, as asked for" in done.stdout
    assert [each for each in running() if each.name.startswith("chat-toy-")] == []


def test_a_model_that_cannot_be_loaded_ends_the_terminal_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "macluster", "chat", "--model", "/no/such/model"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "is not a folder" in done.stderr
    assert [each for each in running() if each.name.startswith("chat-model-")] == []
