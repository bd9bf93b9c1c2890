"""A site on this machine, with the headers without which browsers share no memory between threads."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sam_edge.errors import ExportError, SamEdgeError
from sam_edge.web.site import MANIFEST

HOST = "127.0.0.1"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    # a site written anew is seen at once
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; no listings, and no log of what is asked."""

    extensions_map = {  # noqa: RUF012 - as the base class has it
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def end_headers(self) -> None:
        """Add ours."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: object) -> None:
        """There is nothing to see where there is no index.html."""
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def server(site: Path, port: int) -> ThreadingHTTPServer:
    """A server of a site that `write_site` wrote, not started yet; port 0 takes a free one.

    Raises:
        ExportError: no site. SamEdgeError: the port is taken.
    """
    if not (site / MANIFEST).is_file():
        raise ExportError(f"{site} is no site: write one with `sam-edge export-web MODEL --out {site}`.")
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, directory=str(site)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SamEdgeError(
            f"port {port} cannot be used: {reason}; choose another --port, or 0 for a free one."
        ) from error
