"""The standard library's HTTP server, for endpoints that tests stand up themselves."""

from http.server import ThreadingHTTPServer


class Listener(ThreadingHTTPServer):
    """With room for a burst of new connections: beyond the library's five that wait, further ones are reset."""

    request_queue_size = 128
    daemon_threads = True
