"""The endpoints: who may ask, what is asked, and the answers on their way out."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body

from .batch import Token
from .protocol import (
    DONE,
    Kind,
    Piece,
    Reply,
    RequestError,
    TokenProb,
    Wanted,
    error_object,
    event,
    parse,
    usage,
)

if TYPE_CHECKING:
    from .front import Front, Request

LOCAL = ("localhost", "127.0.0.1", "::1")


def application(front: Front) -> Application:
    """The endpoints of a server."""
    routes: list[Any] = [
        (r"/v1/chat/completions", Making, {"front": front, "kind": "chat"}),
        (r"/v1/completions", Making, {"front": front, "kind": "text"}),
        (r"/v1/models(?:/(.+))?", Models, {"front": front}),
        (r"/health", Health, {"front": front}),
    ]
    return Application(
        routes,
        default_handler_class=Unknown,
        default_handler_args={"front": front},
        log_function=lambda handler: None,
    )


class Handler(RequestHandler):
    """What all endpoints have in common: who may ask, and how errors look."""

    def initialize(self, front: Front) -> None:
        self.front = front

    def set_default_headers(self) -> None:
        self.set_header("Server", "macluster")

    def prepare(self) -> None:
        try:
            self._admit()
        except RequestError as error:
            self.refuse(error)

    def _admit(self) -> None:
        wanted = self.front.settings.key
        local = self.request.host_name.strip("[]") in LOCAL
        if wanted is None and self.front.local and not local:
            # A page of the web whose name was made to lead here. It would not know a key.
            raise RequestError(
                "This server has no key, so it answers to the name localhost only. Serve it with "
                "MACLUSTER_API_KEY set for other names.",
                status=403,
            )
        if wanted is not None and self.needs_key:
            scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode(), wanted.encode())
            if scheme.lower() != "bearer" or not right:
                raise RequestError(
                    "A key is needed: Authorization: Bearer KEY, with the one that the server was "
                    "begun with.",
                    status=401,
                    code="invalid_api_key",
                )
        content = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if self.request.method == "POST" and content != "application/json":
            # A page of the web can send anything else without being asked for leave.
            raise RequestError("The content type has to be application/json.", status=415)

    needs_key = True

    def refuse(self, error: RequestError) -> None:
        self.set_status(error.status)
        if error.status == 500:
            # OpenAI's clients would ask for the same twice more.
            self.set_header("x-should-retry", "false")
        if error.status in (429, 503):
            self.set_header("Retry-After", "5")
        self.finish(error_object(error))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        words = {404: "There is no such endpoint.", 405: "This method is not allowed here."}
        message = words.get(status_code, "The server failed to answer.")
        self.finish(error_object(RequestError(message, status=status_code)))


class Unknown(Handler):
    def prepare(self) -> None:
        self.set_status(404)
        self.write_error(404)


class Health(Handler):
    needs_key = False

    def get(self) -> None:
        status = self.front.status()
        fields = ("age", "up", "active", "waiting", "speed", "requests", "failed", "tokens")
        if status["health"] != "ok":
            self.set_status(503)
        self.finish({"status": status["health"], **{name: status[name] for name in fields}})


class Models(Handler):
    def get(self, name: str | None = None) -> None:
        model = {
            "id": self.front.name,
            "object": "model",
            "created": int(self.front.began),
            "owned_by": "macluster",
        }
        if name is None:
            self.finish({"object": "list", "data": [model]})
        elif name == self.front.name:
            self.finish(model)
        else:
            message = f"The model {name!r} does not exist here."
            self.refuse(RequestError(message, status=404, code="model_not_found"))


@stream_request_body  # so that nothing is taken in before it is known who asks
class Making(Handler):
    """Completions, of a chat or of a text."""

    taken: Request | None = None
    body = b""
    gone = False

    def data_received(self, chunk: bytes) -> None:
        if not self._finished:
            self.body += chunk

    def initialize(self, front: Front, kind: Kind) -> None:  # type: ignore[override]
        super().initialize(front)
        self.kind: Kind = kind

    def on_connection_close(self) -> None:
        self.gone = True
        if self.taken is not None:
            self.taken.inbox.put_nowait(RequestError("", status=499))

    async def post(self) -> None:
        finish = "failed"
        try:
            wanted = parse(self.kind, self.body)
            self.taken = await self.front.begin(wanted)
            if self.gone:
                raise RequestError("", status=499)
            reply = Reply(wanted, self.front.name)
            if wanted.stream:
                finish = await self._stream(wanted, self.taken, reply)
            else:
                finish = await self._whole(self.taken, reply)
        except RequestError as error:
            if error.status == 499:
                finish = "given_up"
            elif self._headers_written:
                self.write(event(error_object(error)))
                self.finish()
            else:
                self.refuse(error)
        except StreamClosedError:
            finish = "given_up"
        finally:
            if self.taken is not None:
                self.front.leave(self.taken, finish)
                self.taken = None

    async def _whole(self, request: Request, reply: Reply) -> str:
        pieces = [Piece(index, "") for index in range(len(request.answers))]
        async for new in self._pieces(request):
            piece = pieces[new.index]
            piece.text += new.text
            piece.logprobs += new.logprobs
            piece.finish = new.finish
        self.finish(reply.whole(pieces, self._usage(request)))
        return pieces[0].finish or "stop"

    async def _stream(self, wanted: Wanted, request: Request, reply: Reply) -> str:
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        for chunk in reply.opening():
            self.write(event(chunk))
        await self.flush()
        finish = "stop"
        async for piece in self._pieces(request):
            self.write(event(reply.chunk(piece)))
            await self.flush()
            finish = piece.finish or finish
        if wanted.usage:
            self.write(event(reply.usage_chunk(self._usage(request))))
        self.write(DONE)
        self.finish()
        return finish

    async def _pieces(self, request: Request) -> AsyncIterator[Piece]:
        """The pieces of all answers, as they come. Raises RequestError."""
        under_way = set(range(len(request.answers)))
        while under_way:
            found = await request.inbox.get()
            if isinstance(found, RequestError):
                raise found
            answer, tokens = found
            index = request.answers.index(answer)
            if index not in under_way:
                continue  # it was stopped, and had gone on for a step or two
            piece = self._piece(request, index, tokens)
            if piece.finish is not None:
                under_way.discard(index)
            if piece.text or piece.finish or piece.logprobs:
                yield piece

    def _piece(self, request: Request, index: int, tokens: Sequence[Token]) -> Piece:
        writer, piece = request.writers[index], Piece(index, "")
        for token in tokens:
            piece.finish = token.finish
            if token.finish != "stop":
                piece.text += writer.add([token.token])
                request.counts[index] += 1
                if token.logprob is not None:
                    piece.logprobs.append(self._prob(token))
            if writer.stopped:
                break  # what the ranks have computed beyond it is nobody's
        if piece.finish is not None:
            piece.text += writer.finish()
        if writer.stopped:
            piece.finish = "stop"
            self.front.scheduler.end(request.answers[index])
        return piece

    def _prob(self, token: Token) -> TokenProb:
        assert token.logprob is not None
        top = [(self._word(each), logprob) for each, logprob in token.top]
        return TokenProb(self._word(token.token), token.logprob, top)

    def _word(self, token: int) -> str:
        """A token as text. Some tokenizers drop the space in front of the first one."""
        assert self.front.loaded is not None
        decode = self.front.loaded.tokenizer.decode
        alone, twice = decode([token]), decode([token, token])
        return str(twice[len(alone) :])

    def _usage(self, request: Request) -> dict[str, Any]:
        reused = sum(each.reused for each in request.answers)
        return usage(request.prompt, reused, sum(request.counts))
