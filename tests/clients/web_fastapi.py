"""An agent on FastAPI and uvicorn, as its users write one. web_express.mjs and web_aiohttp.py answer alike; here besides:
/events is for event sources, /ask calls another agent, and /ws is a WebSocket.
"""

import gzip
import hashlib

import httpx
import uvicorn
from fastapi import FastAPI, File, Form, Request, Response, UploadFile, WebSocket
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from witness import PAGE, page_file, port, seen, until_heard

app = FastAPI()
ETAG = '"v1"'


@app.middleware("http")
async def witness(request: Request, call_next):
    seen(request.method, path=request.url.path)
    return await call_next(request)


@app.api_route("/echo", methods=["GET", "POST"])
async def echo(request: Request):
    body = (await request.body()).decode()
    return {"method": request.method, "query": dict(request.query_params), "body": body}


@app.api_route("/page", methods=["GET", "HEAD"])
async def page(request: Request):
    if request.headers.get("if-none-match") == ETAG:
        return Response(status_code=304, headers={"etag": ETAG})
    return Response(PAGE, media_type="text/plain", headers={"etag": ETAG})


@app.options("/page")
async def page_options():
    return Response(status_code=204, headers={"allow": "GET, HEAD, OPTIONS, DELETE"})


@app.delete("/page", status_code=204)
async def page_delete():
    return Response(status_code=204)


@app.get("/range")
async def file_range():
    return FileResponse(page_file(), media_type="text/plain")


@app.get("/gzip")
async def zipped():
    return Response(gzip.compress(PAGE, mtime=0), media_type="text/plain", headers={"content-encoding": "gzip"})


@app.get("/login")
async def login():
    response = Response("in")
    response.set_cookie("session", "s1", path="/", httponly=True)
    response.set_cookie("theme", "dark", path="/")
    return response


@app.get("/whoami")
async def whoami(request: Request):
    return dict(request.cookies)


@app.get("/old")
async def old(request: Request):
    # Absolute, and of this agent's own address: what frameworks make of a request.
    return RedirectResponse(str(request.url_for("echo").include_query_params(moved="yes")), status_code=302)


@app.post("/moved")
async def moved():
    return RedirectResponse("/echo", status_code=307)


@app.get("/elsewhere")
async def elsewhere(to: str):
    return RedirectResponse(to, status_code=302)


@app.post("/upload")
async def upload(file: UploadFile = File(), note: str = Form()):
    digest = hashlib.sha256(await file.read()).hexdigest()
    return {"name": file.filename, "type": file.content_type, "sha256": digest, "note": note}


@app.get("/stream")
async def stream(stream: str, steps: int):
    async def lines():
        for step in range(1, steps + 1):
            yield f"step {step}\n".encode()
            await until_heard(stream, step)

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/events")
async def events(request: Request):
    """Two events to a connection, five in all: a client that comes back says which it has."""
    last = int(request.headers.get("last-event-id", 0))
    seen("events", last=last)
    if last >= 5:
        return Response(status_code=204)  # "do not come again"

    async def some():
        yield b"retry: 10\n\n"
        for n in range(last + 1, min(last + 2, 5) + 1):
            yield f"id: {n}\ndata: event {n}\n\n".encode()

    return StreamingResponse(some(), media_type="text/event-stream")


@app.get("/bytes")
async def some_bytes(n: int):
    block = bytes(range(256)) * 4096

    async def blocks():
        for at in range(0, n, len(block)):
            yield block[: n - at]

    return StreamingResponse(blocks(), media_type="application/octet-stream")


@app.put("/sink")
async def sink(request: Request):
    count, digest = 0, hashlib.sha256()
    async for part in request.stream():
        count += len(part)
        digest.update(part)
    return {"count": count, "sha256": digest.hexdigest()}


@app.get("/ask")
async def ask(url: str):
    async with httpx.AsyncClient() as http:
        answer = await http.get(url)
    return {"status": answer.status_code, "body": answer.text}


@app.websocket("/ws")
async def socket(ws: WebSocket):
    seen("websocket")
    await ws.accept(subprotocol="echo.v1")
    async for text in ws.iter_text():
        if text == "bye":
            await ws.close(4001, "as asked")
            return
        await ws.send_text(f"echo: {text}")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port(), log_level="warning")
