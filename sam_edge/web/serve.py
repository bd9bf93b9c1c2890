"""A site on this machine, with the headers without which browsers share no memory between threads."""

import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sam_edge.errors import ExportError, SamEdgeError
from sam_edge.web.site import MANIFEST

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""What a browser on this machine may call it. A page of another name, which its owner lets point here, is another
origin's, and may not read a site by it (DNS rebinding)."""
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    # a site written anew is seen at once
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, to who calls this machine by its own name; no listings, and no log of what is asked."""

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

    def send_head(self) -> Any:
        """Answer, unless `refusal` has something against it."""
        refusal = self.refusal()
        if refusal is None:
            return super().send_head()
        self.send_error(refusal)
        return None

    def refusal(self) -> HTTPStatus | None:
        """Why a request is not answered: it calls this machine another's name, or leads out of the folder by a link."""
        try:
            # by a tunnel the port is another
            if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in NAMES:
                return HTTPStatus.MISDIRECTED_REQUEST
            asked, folder = Path(self.translate_path(self.path)).resolve(), Path(self.directory).resolve()
        except (OSError, ValueError):
            # no names of hosts and files
            return HTTPStatus.NOT_FOUND
        return None if asked.is_relative_to(folder) else HTTPStatus.NOT_FOUND

    def list_directory(self, path: object) -> None:
        """There is nothing to see where there is no index.html."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server that a browser may leave in the middle of a file."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that were closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(site: Path, port: int) -> Server:
    """A server of a site that `write_site` wrote, not started yet; port 0 takes a free one.

    Raises:
        ExportError: no site. SamEdgeError: the port is taken.
    """
    if not (site / MANIFEST).is_file():
        raise ExportError(f"{site} is no site: write one with `sam-edge export-web MODEL --out {site}`.")
    try:
        return Server((HOST, port), partial(Handler, directory=str(site)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SamEdgeError(
            f"port {port} cannot be used: {reason}; choose another --port, or 0 for a free one."
        ) from error
