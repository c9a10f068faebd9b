"""An agent that knows nothing of a mesh: it answers on the port that it is told."""

import http.server
import os


class Hello(http.server.BaseHTTPRequestHandler):
    """Says hello to whoever asks."""

    def answer(self):
        """Answers any method alike."""
        body = b"hello\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Hello).serve_forever()
