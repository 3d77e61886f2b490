"""What holds for every route, vLLM's too: pictures get the policy of the API key, and a 503 says when to try again."""

from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RETRY_AFTER_SECONDS
from server.profiles.book import key_digest
from server.request import RequestState, current_request


class RequestMiddleware:
    """ASGI middleware around vLLM's app. Routes that read a ``dfmr`` object replace the state with one that has it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
                MutableHeaders(scope=message).setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
            await send(message)

        token = current_request.set(RequestState(key=key_digest(Headers(scope=scope).get("authorization"))))
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            current_request.reset(token)
