#!/usr/bin/env python3
"""Prints every route that the installed Synapse registers: mode, method, pattern, servlet, separated by tabs, sorted.

Run it with the Python that has Synapse installed; it builds homeservers in this process (in-memory SQLite, no sockets)
through Synapse's own listener set-up, and reads their resource trees. The mode is the first configuration that has the
route: `default`, `optional` (settings and experimental features that register more), `mas` (Matrix Authentication
Service). A pattern that ends in `$` is a regular expression, which Synapse matches on the raw path from its start; any
other one is a place in Twisted's tree, matched on decoded segments and, where it ends in `/*`, whatever follows.
"""

import logging
import re
import sys
import tempfile
from pathlib import Path

from signedjson.key import generate_signing_key, write_signing_keys
from twisted.internet import reactor
from twisted.web.static import File

import synapse.app.homeserver as app
from synapse.config.homeserver import HomeServerConfig
from synapse.http.server import JsonResource
from synapse.logging.context import LoggingContext
from synapse.server import HomeServer

RESOURCES = ["client", "federation", "keys", "media", "metrics", "openid", "replication", "static"]

EXPERIMENTS = ["msc1763", "msc3391", "msc3720", "msc3814", "msc4133", "msc4143", "msc4306", "msc4370", "msc4502",
               "msc4512"]

MODES = {
    "default": {},
    "optional": {
        "cas_config": {"enabled": True, "server_url": "https://cas.invalid", "service_url": "https://server.invalid"},
        "email": {"smtp_host": "localhost", "notif_from": "server <server@server.invalid>"},
        "experimental_features": {
            **{f"{name}_enabled": True for name in EXPERIMENTS},
            "msc3983_appservice_otk_claims": True,
        },
        "federation_whitelist_endpoint_enabled": True,
        "login_via_existing_session": {"enabled": True},
        "retention": {"enabled": True},
        "user_consent": {"version": "1.0"},
    },
    "mas": {
        "experimental_features": {"msc4108_enabled": True, "msc4388_mode": "open"},
        "matrix_authentication_service": {"enabled": True, "endpoint": "http://localhost:1/", "secret": "secret"},
        "password_config": {"enabled": False},
    },
}


def main() -> None:
    logging.disable(logging.CRITICAL)
    first: dict[tuple[str, str, str], str] = {}
    for mode, settings in MODES.items():
        for route in routes(settings):
            first.setdefault(route, mode)
    for (method, pattern, servlet), mode in sorted(first.items(), key=lambda entry: (entry[1], entry[0])):
        print(mode, method, pattern, servlet, sep="\t")


def routes(settings: dict) -> set[tuple[str, str, str]]:
    """All routes of a homeserver with these settings added to the smallest configuration."""
    with tempfile.TemporaryDirectory() as directory:
        return {route for tree in trees(Path(directory), settings) for route in walk(tree, "")}


def trees(directory: Path, settings: dict) -> list:
    """The roots of what such a homeserver serves, one a listener."""
    with LoggingContext(name="main", server_name="server.invalid"):
        homeserver = app.create_homeserver(configuration(directory, settings), reactor)
        # The in-memory database is filled through one connection and read through none, so nothing but the
        # registration itself may run: no background task is started.
        homeserver.setup()
        roots = []
        app.listen_http = lambda hs, listener, root, *rest, **named: roots.append(root) or []
        for listener in homeserver.config.server.listeners:
            homeserver._listener_http(homeserver.config, listener)
        return roots


def configuration(directory: Path, settings: dict) -> HomeServerConfig:
    """The smallest configuration that has these settings; all files it names are in this directory."""
    names = RESOURCES
    if "user_consent" in settings:
        names = names + ["consent"]
        settings["user_consent"]["template_dir"] = str(directory / "consent")
    key = directory / "signing.key"
    with key.open("w") as file:
        write_signing_keys(file, [generate_signing_key("a_key")])
    templates = directory / "consent" / "en"
    templates.mkdir(parents=True)
    (templates / "1.0.html").write_text("")
    (templates / "success.html").write_text("")
    config = HomeServerConfig()
    config.parse_config_dict(
        {
            "server_name": "server.invalid",
            "public_baseurl": "https://server.invalid/",
            "report_stats": False,
            "enable_metrics": True,
            "database": {"name": "sqlite3", "args": {"database": ":memory:"}},
            "media_store_path": str(directory / "media"),
            "signing_key_path": str(key),
            "macaroon_secret_key": "secret",
            "form_secret": "secret",
            "worker_replication_secret": "secret",
            "pid_file": str(directory / "pid"),
            "trusted_key_servers": [],
            "listeners": [
                {"type": "http", "port": 1, "bind_addresses": ["127.0.0.1"], "resources": [{"names": names}]}
            ],
            **settings,
        },
        str(directory),
        str(directory),
    )
    return config


def walk(resource, path: str):
    """Yields what is served at this place of Twisted's tree and below it."""
    if isinstance(resource, JsonResource):
        for pattern, methods in resource._routes.items():
            for method, entry in methods.items():
                yield method.decode(), pattern.pattern, entry.servlet_classname
        return
    handlers = [re.fullmatch("(?:_async_)?render_([A-Z]+)", name) for name in dir(resource)]
    methods = {handler[1] for handler in handlers if handler}
    servlet = type(resource).__name__
    # Twisted answers HEAD by GET, Synapse OPTIONS anywhere. A leaf is asked for whatever stands below it, too.
    for method in sorted(methods - {"HEAD", "OPTIONS"}):
        yield method, (path or "/") + ("/*" if resource.isLeaf or isinstance(resource, File) else ""), servlet
    for name, child in getattr(resource, "children", {}).items():
        yield from walk(child, f"{path}/{name.decode()}")


if __name__ == "__main__":
    sys.exit(main())
