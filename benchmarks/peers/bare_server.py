"""The transports alone: grpc.aio and uvicorn as in our server, with answers made beforehand; no model, no checks.

What a request costs here is what no server on these libraries can save. Runs with our own interpreter:
`python bare_server.py GRPC_PORT HTTP_PORT ANSWERS.json`, where ANSWERS.json says which body gets which answer, both in
base64.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import uvicorn
import uvloop

METHOD = "/tensorflow.serving.PredictionService/Predict"


async def serve(grpc_port: int, http_port: int, answers: dict[bytes, bytes]) -> None:
    """Serve on one event loop until the process is told to end."""

    async def predict(request: bytes, _context: Any) -> bytes:
        return answers[request]

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(predict) if details.method == METHOD else None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        answer = answers.get(body, b"{}")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=http_port, log_level="warning", access_log=False, lifespan="off", ws="none",
        proxy_headers=False, server_header=False, date_header=False, http="httptools",
    )  # fmt: skip
    await uvicorn.Server(config).serve()


def main(grpc_port: str, http_port: str, answers_file: str) -> None:
    pairs = json.loads(Path(answers_file).read_text())
    answers = {base64.b64decode(request): base64.b64decode(answer) for request, answer in pairs}
    if hasattr(asyncio, "set_event_loop_policy"):
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(int(grpc_port), int(http_port), answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
