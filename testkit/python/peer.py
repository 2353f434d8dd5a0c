"""A small foreign Matrix server: shows its keys over TLS, and signs requests.

    peer.py CERTIFICATE KEY

The first line on standard output says {"port", "key_id"}. Then each line on standard input, {"method", "uri",
"destination", "content"?}, is answered with {"authorization"}. Ends with its standard input.
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json


def main():
    certificate, key = sys.argv[1:]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.signing_key = generate_signing_key("a_peer")
    server.name = "localhost:%d" % server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say({"port": server.server_port, "key_id": key_id(server.signing_key)})
    for line in sys.stdin:
        say({"authorization": authorize(server, json.loads(line))})


def authorize(server, asked):
    """The X-Matrix field for a request (server-server API, request authentication)."""
    signed = sign_json({**asked, "origin": server.name}, server.name, server.signing_key)
    signature = signed["signatures"][server.name][key_id(server.signing_key)]
    return 'X-Matrix origin="%s",destination="%s",key="%s",sig="%s"' % (
        server.name,
        asked["destination"],
        key_id(server.signing_key),
        signature,
    )


def key_id(signing_key):
    return "%s:%s" % (signing_key.alg, signing_key.version)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a connection that ends in its handshake is the test's business


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0].rstrip("/")
        if path == "/_matrix/key/v2/server":
            self.answer(200, self.keys())
        elif path == "/_matrix/federation/v1/version":
            self.answer(200, {"server": {"name": "peer", "version": "0"}})
        else:
            self.answer(404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})

    do_PUT = do_POST

    def keys(self):
        signing_key, name = self.server.signing_key, self.server.name
        verify_key = encode_verify_key_base64(get_verify_key(signing_key))
        keys = {
            "server_name": name,
            "valid_until_ts": int(time.time() * 1000) + 24 * 3600 * 1000,
            "verify_keys": {key_id(signing_key): {"key": verify_key}},
            "old_verify_keys": {},
        }
        return sign_json(keys, name, signing_key)

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def say(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
