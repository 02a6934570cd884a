"""A draft that proposes tokens: the answers stay the same, to the token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import macluster
from macluster.engine.models import tiny
from macluster.magics.model import LOAD, ModelMagics
from tests.cluster.faults import KILL, SUM, end_of
from tests.cluster.models import ENV, TIMEOUT, answers, fails, start

TOY = str(tiny.toy_path())
TURNS = ["What is the capital of France?", "And what is the capital of Japan?", "What is 3 plus 4?"]
COUNT = "Count from 1 to 15."

# In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good. A draft that is
# often wrong: the toy, with noise on its weights. One with other words, and one with windows.
MAKE = """
import json, shutil, sys
from pathlib import Path
import mlx.core as mx
from macluster.engine.models import tiny
toy, folder = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("noisy", "words"):
    shutil.copytree(toy, folder / name)
file = folder / "noisy" / "model.safetensors"
mx.random.seed(1)
weights = {name: value + 0.15 * mx.std(value) * mx.random.normal(value.shape)
           for name, value in mx.load(str(file)).items()}
mx.eval(weights)
mx.save_safetensors(str(file), weights)
words = folder / "words" / "tokenizer.json"
facts = json.loads(words.read_text())
size = len(facts["model"]["vocab"])
facts["model"]["vocab"] = {word: (number + 100) % size if number > 300 else number
                           for word, number in facts["model"]["vocab"].items()}
words.write_text(json.dumps(facts))
tiny.make("gpt_oss", folder / "windows")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafts")
    made = [sys.executable, "-c", MAKE, TOY, str(folder)]
    done = subprocess.run(made, env={**os.environ, **ENV}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[macluster.World]:
    yield from start(2)


@pytest.fixture(params=["tensor", "pipeline"])
def model(two: macluster.World, folder: Path, request: pytest.FixtureRequest) -> macluster.World:
    draft = str(folder / "noisy")
    two.run(f"model = macluster.load({TOY!r}, {request.param!r}, draft={draft!r})").result(TIMEOUT)
    return two


GENERATE = """
def tokens(**options):
    parts = list(macluster.stream_generate(model, {prompt!r}, max_tokens={most}, **options))
    return [part.token for part in parts], sum(part.from_draft for part in parts)
print(json.dumps([tokens({with_}), tokens(draft_model=None)]))
"""


@pytest.mark.parametrize("with_", ["", "num_draft_tokens=4", "num_draft_tokens=1"])
@pytest.mark.parametrize(("prompt", "most"), [(COUNT, -1), ([5, 99, 300, 42, 7], 40), (COUNT, 7)])
def test_the_tokens_are_those_without_a_draft(
    model: macluster.World, prompt: Any, most: int, with_: str
) -> None:
    found = answers(model, GENERATE.format(prompt=prompt, most=most, with_=with_))
    assert found == [found[0]] * 2
    (drafted, count), (plain, none) = found[0]
    assert drafted == plain
    assert none == 0
    # Some of the proposals are taken, and some are not.
    assert 0 < count < len(drafted)


def test_what_is_drawn_is_the_same_on_all_ranks(model: macluster.World) -> None:
    code = GENERATE.format(prompt=COUNT, most=40, with_="temperature=3.0, seed=3")
    found = answers(model, code)
    assert found[0][0] == found[1][0]
    assert found[0][0][0] != found[0][1][0]


TALK = """
def talk(chat):
    turns = []
    for text in {turns!r}:
        said = chat.say(text)
        lengths = sorted({{each.offset for each in chat._cache}})
        turns.append([said.text, said.tokens, said.prompt_tokens + said.reused, lengths])
    return turns, chat.last.reused, chat.last.drafted
print(json.dumps([talk(macluster.Chat(model)), talk(macluster.Chat(model, draft_model=None))]))
"""


def test_a_conversation_goes_on_over_turns(model: macluster.World) -> None:
    found = answers(model, TALK.format(turns=[*TURNS, COUNT]))
    assert found == [found[0]] * 2
    (drafted, reused, count), (plain, _, none) = found[0]
    assert [turn[:3] for turn in drafted] == [turn[:3] for turn in plain]
    assert reused > 0
    assert count > 0
    assert none == 0
    # Both models' caches stand for the same tokens after every turn.
    assert all(len(turn[3]) == 1 for turn in drafted)


def test_a_conversation_with_a_draft_is_saved_and_goes_on(
    model: macluster.World, tmp_path: Path
) -> None:
    talk = str(tmp_path / "talk")
    code = (
        f"chat = macluster.Chat(model)\nchat.say({TURNS[0]!r})\nchat.save({talk!r})\n"
        f"other = macluster.Chat(model)\nother.restore({talk!r})\n"
        f"plain = macluster.Chat(model, draft_model=None)\nplain.restore({talk!r})\n"
        f"print(json.dumps([[a.text, a.reused] for a in (each.say({TURNS[1]!r}) "
        "for each in (chat, other, plain))]))"
    )
    first, second, third = answers(model, code)[0]
    assert first == second
    assert first[1] > 0
    assert third[0] == first[0]


def test_a_rank_that_is_started_anew_gets_the_draft_back(model: macluster.World) -> None:
    look = GENERATE.format(prompt=COUNT, most=20, with_="") + (
        "print(json.dumps([tokens(), repr(model.draft), repr(model)]))"
    )
    before = answers(model, look)
    assert "draft: qwen2, 0.20 M, 791.8 kB on every rank" in before[0][2]
    end_of(model.run(f"import os, signal\nif rank == 1:\n    {KILL.code}\n{SUM}"))
    assert answers(model, look) == before


def test_a_draft_that_does_not_go_with_the_model_is_refused(
    two: macluster.World, folder: Path
) -> None:
    text = fails(two, f"macluster.load({TOY!r}, draft={str(folder / 'words')!r})")
    assert "cannot draft for this one" in text
    assert "they have different vocabularies" in text
    windows = str(folder / "windows")
    text = fails(two, f"macluster.load({windows!r}, draft={windows!r})")
    assert "There can be no draft with a gpt_oss model" in text
    text = fails(two, f"macluster.load({TOY!r}, draft={TOY!r} if rank else None)")
    assert "another draft" in text
    assert "/no/draft is not a folder" in fails(two, f"macluster.load({TOY!r}, draft='/no/draft')")


def test_a_draft_counts_in_memory(two: macluster.World) -> None:
    code = f"""
from macluster.engine.models import load as loading
memory, loading.memory = loading.memory, lambda: ("", 2 * 900_000, "the memory of a test")
try:
    macluster.load({TOY!r}, context=64{{}})
finally:
    loading.memory = memory
print(json.dumps(True))
"""
    assert answers(two, code.format("")) == [True, True]
    text = fails(two, code.format(f", draft={TOY!r}"))
    assert "does not fit on rank 0" in text
    assert "for the draft with its cache" in text


def test_ranks_that_want_different_drafts_are_stopped(model: macluster.World) -> None:
    ask = f"macluster.generate(model, {COUNT!r}, {{}})"
    text = fails(model, ask.format("num_draft_tokens=2 + rank"))
    assert "another proposals" in text
    text = fails(model, ask.format("**({'draft_model': None} if rank else {})"))
    assert "another draft" in text


def test_the_magic_takes_a_draft() -> None:
    code = ModelMagics._load(LOAD.read("big --draft small"))
    assert code.startswith("model = macluster.load('big', 'auto', draft='small', context=4096)\n")
