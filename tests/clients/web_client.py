"""What Python's HTTP clients are used for, one after the other in one session, as their documentation says; no proxy
argument anywhere. Prints what each step observed.

    web_client.py URL requests|httpx|httpx-async|aiohttp
"""

import asyncio
import hashlib
import sys
from types import SimpleNamespace

from witness import heard, report

FILE = bytes(range(256)) * 4096


def answer(status, headers, body, url):
    return SimpleNamespace(status=status, headers=headers, body=body, url=str(url))


class Requests:
    """requests, with a Session."""

    def __init__(self, base):
        import requests

        self.base, self.session = base, requests.Session()

    async def call(self, method, path, follow=False, **more):
        got = self.session.request(method, self.base + path, allow_redirects=follow, timeout=30, **more)
        return answer(got.status_code, got.headers, got.content, got.url)

    async def lines(self, path):
        with self.session.get(self.base + path, stream=True, timeout=30) as got:
            for line in got.iter_lines(chunk_size=1):
                yield line.decode()

    async def unread(self, path):
        got = self.session.get(self.base + path, stream=True, timeout=30)
        first = next(got.iter_content(1000))
        got.close()
        return len(first)

    async def close(self):
        self.session.close()


class Httpx:
    """httpx, with a Client."""

    def __init__(self, base):
        import httpx

        self.base, self.client = base, httpx.Client(timeout=30)

    async def call(self, method, path, follow=False, data=None, **more):
        body = {"content": data} if isinstance(data, bytes) else {"data": data}
        got = self.client.request(method, self.base + path, follow_redirects=follow, **body, **more)
        return answer(got.status_code, got.headers, got.content, got.url)

    async def lines(self, path):
        with self.client.stream("GET", self.base + path) as got:
            for line in got.iter_lines():
                yield line

    async def unread(self, path):
        with self.client.stream("GET", self.base + path) as got:
            return min(1000, len(next(got.iter_bytes(1000))))

    async def close(self):
        self.client.close()


class HttpxAsync:
    """httpx, with an AsyncClient that may speak HTTP/2."""

    def __init__(self, base):
        import httpx

        self.base, self.client = base, httpx.AsyncClient(timeout=30, http2=True)

    async def call(self, method, path, follow=False, data=None, **more):
        body = {"content": data} if isinstance(data, bytes) else {"data": data}
        got = await self.client.request(method, self.base + path, follow_redirects=follow, **body, **more)
        return answer(got.status_code, got.headers, got.content, got.url)

    async def lines(self, path):
        async with self.client.stream("GET", self.base + path) as got:
            async for line in got.aiter_lines():
                yield line

    async def unread(self, path):
        async with self.client.stream("GET", self.base + path) as got:
            async for part in got.aiter_bytes(1000):
                return len(part)

    async def close(self):
        await self.client.aclose()


class Aiohttp:
    """aiohttp, with the one argument that makes it read the proxy variables."""

    def __init__(self, base):
        import aiohttp

        self.base, self.session, self.form = base, aiohttp.ClientSession(trust_env=True), aiohttp.FormData

    async def call(self, method, path, follow=False, data=None, files=None, **more):
        if files:
            form = self.form(data)
            for field, (name, content, kind) in files.items():
                form.add_field(field, content, filename=name, content_type=kind)
            data = form
        request = self.session.request(method, self.base + path, allow_redirects=follow, data=data, **more)
        async with request as got:
            return answer(got.status, got.headers, await got.read(), got.url)

    async def lines(self, path):
        async with self.session.get(self.base + path) as got:
            async for line in got.content:
                yield line.decode().rstrip("\n")

    async def unread(self, path):
        async with self.session.get(self.base + path) as got:
            return len(await got.content.readexactly(1000))

    async def close(self):
        await self.session.close()


def json_of(got):
    import json

    return json.loads(got.body)


async def bodies(http):
    echo = await http.call("POST", "/echo?q=a%20b", data="hello ✓".encode(), headers={"Content-Type": "text/plain"})
    head = await http.call("HEAD", "/page")
    options = await http.call("OPTIONS", "/page")
    delete = await http.call("DELETE", "/page")
    same = await http.call("GET", "/page", headers={"If-None-Match": '"v1"'})
    part = await http.call("GET", "/range", headers={"Range": "bytes=10-19"})
    zipped = await http.call("GET", "/gzip")
    return {
        "echo": json_of(echo),
        "head": [head.status, head.headers["content-length"], len(head.body)],
        "options": [options.status, options.headers["allow"], len(options.body)],
        "delete": [delete.status, len(delete.body)],
        "not_modified": [same.status, same.headers["etag"], len(same.body)],
        "range": [part.status, part.headers["content-range"], part.body.decode()],
        "gzip": [zipped.status, zipped.headers["content-encoding"], len(zipped.body)],
    }


async def state(http):
    await http.call("GET", "/login")
    cookies = json_of(await http.call("GET", "/whoami"))
    moved = await http.call("GET", "/old", follow=True)
    posted = await http.call("POST", "/moved", follow=True, data=b"kept")
    file = {"file": ("a.bin", FILE, "application/x-test")}
    upload = json_of(await http.call("POST", "/upload", data={"note": "hi"}, files=file))
    upload["sha256"] = upload["sha256"] == hashlib.sha256(FILE).hexdigest()
    return {
        "cookies": cookies,
        "moved": [moved.status, moved.url.split("?")[0].removeprefix(http.base), json_of(moved)["query"]],
        "posted": [posted.status, json_of(posted)["method"], json_of(posted)["body"]],
        "upload": upload,
    }


async def streams(http, stream):
    lines = []
    async for line in http.lines(f"/stream?stream={stream}&steps=3"):
        lines.append(line)
        heard(stream, len(lines))
    unread = await http.unread("/bytes?n=300000000")
    after = await http.call("GET", "/page")
    return {"stream": lines, "unread": unread, "after": [after.status, len(after.body)]}


async def denied(http):
    got = await http.call("GET", "/forbidden")
    problem = json_of(got)
    return {"denied": [got.status, got.headers["content-type"], problem["reason"], problem["rule"]]}


async def main():
    base, name = sys.argv[1:3]
    clients = {"requests": Requests, "httpx": Httpx, "httpx-async": HttpxAsync, "aiohttp": Aiohttp}
    http = clients[name](base)
    stream = f"{base.removeprefix('http://').split('.')[0]}-{name}"
    observed = await bodies(http) | await state(http) | await streams(http, stream) | await denied(http)
    await http.close()
    report(**observed)


asyncio.run(main())
