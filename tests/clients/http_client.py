"""Plain HTTP with the usual Python clients, each as its users call it: no proxy argument anywhere.

    http_client.py URL requests|httpx|aiohttp|aiohttp-trust-env|urllib|httpx2
"""

import asyncio
import sys
import urllib.error
import urllib.request

from witness import report


def with_requests(url):
    import requests

    got = requests.get(url, timeout=30)
    return got.status_code, got.text


def with_httpx(url):
    import httpx

    got = httpx.get(url, timeout=30)
    return got.status_code, got.text


def with_httpx2(url):
    import httpx2

    got = httpx2.get(url, timeout=30)
    return got.status_code, got.text


def with_urllib(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


async def aiohttp_get(url, trust_env):
    import aiohttp

    async with aiohttp.ClientSession(trust_env=trust_env) as session, session.get(url) as got:
        return got.status, await got.text()


def main():
    url, client = sys.argv[1:3]
    clients = {
        "requests": with_requests,
        "httpx": with_httpx,
        "httpx2": with_httpx2,
        "urllib": with_urllib,
        "aiohttp": lambda u: asyncio.run(aiohttp_get(u, False)),
        "aiohttp-trust-env": lambda u: asyncio.run(aiohttp_get(u, True)),
    }
    try:
        status, body = clients[client](url)
        report(client=client, status=status, body=body)
    except Exception as e:  # noqa: BLE001 a client that does not use the proxy fails to resolve the name
        report(client=client, error=f"{type(e).__name__}: {e}")


main()
