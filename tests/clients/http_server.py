"""A plain HTTP/1.1 agent on the standard library only: it echoes what it was sent, and streams events in lockstep.

GET /events?stream=NAME&steps=N streams; GET /trailers answers with trailers; anything else echoes as JSON.
"""

import asyncio
import json
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from witness import port, seen, until_heard


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def events(self, query):
        stream, steps = query["stream"][0], int(query["steps"][0])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for step in range(1, steps + 1):
            self.chunk(f"data: step {step}\n\n".encode())
            asyncio.run(until_heard(stream, step))
        self.chunk(b"")

    def trailers(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Trailer", "X-Checksum")
        self.end_headers()
        self.chunk(b"with trailers")
        self.wfile.write(b"0\r\nX-Checksum: abc\r\nX-Aip-Decision: forged\r\n\r\n")

    def answer(self):
        url = urllib.parse.urlsplit(self.path)
        body = self.body()
        seen(self.command, path=self.path)
        if url.path == "/events":
            return self.events(urllib.parse.parse_qs(url.query))
        if url.path == "/trailers":
            return self.trailers()
        echo = {
            "method": self.command,
            "path": self.path,
            "headers": [[k.lower(), v] for k, v in self.headers.items()],
            "body": body.decode("utf-8", "replace"),
            "version": self.request_version,
        }
        data = json.dumps(echo).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Aip-Source", "forged")
        self.send_header("X_Aip_Verdict", "forged")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = answer

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", port()), Agent).serve_forever()
