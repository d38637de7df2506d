"""A small service on numpy: answers HTTP with a computed page."""

import http.server
import os

import numpy


def answer() -> bytes:
    """The determinant of a fixed matrix: proof that numpy really ran."""
    matrix = numpy.arange(1, 10).reshape(3, 3) + numpy.eye(3)
    return f"numpy {numpy.__version__}: determinant {numpy.linalg.det(matrix):.3f}\n".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = answer()
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        pass


if __name__ == "__main__":
    address = ("127.0.0.1", int(os.environ.get("PORT", "8080")))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()
