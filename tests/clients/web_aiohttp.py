"""An agent on aiohttp's own server; it answers as web_fastapi.py does. /bytes and /sink move any number."""

import gzip
import hashlib

from aiohttp import web

from witness import PAGE, page_file, port, seen, until_heard

ETAG = '"v1"'
routes = web.RouteTableDef()


@web.middleware
async def witness(request, handler):
    seen(request.method, path=request.path)
    return await handler(request)


@routes.get("/echo")
@routes.post("/echo")
async def echo(request):
    return web.json_response(
        {"method": request.method, "query": dict(request.query), "body": await request.text()}
    )


@routes.get("/page")
async def page(request):
    if request.headers.get("If-None-Match") == ETAG:
        return web.Response(status=304, headers={"ETag": ETAG})
    return web.Response(body=PAGE, content_type="text/plain", headers={"ETag": ETAG})


@routes.options("/page")
async def page_options(_request):
    return web.Response(status=204, headers={"Allow": "GET, HEAD, OPTIONS, DELETE"})


@routes.delete("/page")
async def page_delete(_request):
    return web.Response(status=204)


@routes.get("/range")
async def file_range(_request):
    return web.FileResponse(page_file())


@routes.get("/gzip")
async def zipped(_request):
    body = gzip.compress(PAGE, mtime=0)
    return web.Response(body=body, content_type="text/plain", headers={"Content-Encoding": "gzip"})


@routes.get("/login")
async def login(_request):
    response = web.Response(text="in")
    response.set_cookie("session", "s1", httponly=True)
    response.set_cookie("theme", "dark")
    return response


@routes.get("/whoami")
async def whoami(request):
    return web.json_response(dict(request.cookies))


@routes.get("/old")
async def old(request):
    raise web.HTTPFound(request.url.with_path("/echo").with_query(moved="yes"))


@routes.post("/moved")
async def moved(_request):
    raise web.HTTPTemporaryRedirect("/echo")


@routes.post("/upload")
async def upload(request):
    form = await request.post()
    file = form["file"]
    digest = hashlib.sha256(file.file.read()).hexdigest()
    answer = {"name": file.filename, "type": file.content_type, "sha256": digest, "note": form["note"]}
    return web.json_response(answer)


@routes.get("/stream")
async def stream(request):
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    for step in range(1, int(request.query["steps"]) + 1):
        await response.write(f"step {step}\n".encode())
        await until_heard(request.query["stream"], step)
    return response


@routes.get("/bytes")
async def some_bytes(request):
    left, block = int(request.query["n"]), bytes(range(256)) * 4096
    response = web.StreamResponse()
    await response.prepare(request)
    while left > 0:
        await response.write(block[:left])
        left -= len(block)
    return response


@routes.put("/sink")
async def sink(request):
    count, digest = 0, hashlib.sha256()
    async for part in request.content.iter_any():
        count += len(part)
        digest.update(part)
    return web.json_response({"count": count, "sha256": digest.hexdigest()})


if __name__ == "__main__":
    app = web.Application(middlewares=[witness], client_max_size=16 * 1024 * 1024)
    app.add_routes(routes)
    web.run_app(app, host="127.0.0.1", port=port(), print=None)
