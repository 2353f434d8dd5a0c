#!/usr/bin/env python3
"""Says which servlet of the installed Synapse would run for a request, by Synapse's own routers.

Run it with the Python that has Synapse installed. First it prints a line for each route of each configuration of
`routes.py`: method, where it stands (a pattern, or a place in Twisted's tree), servlet and paths that reach it,
separated by tabs; then an empty line. Then it reads lines of method, tab, raw path (without its query) and prints for
each what would run: `-` for nothing, else the places, one a configuration, separated by tabs. A place of a pattern with
a query type has a space and the type as Synapse decodes it.
"""

import logging
import re
import sys
import tempfile
import urllib.parse
from pathlib import Path

try:
    from re import _parser as patterns
except ImportError:  # Python 3.10
    import sre_parse as patterns

from twisted.web.resource import getChildForRequest
from twisted.web.static import File

from routes import MODES, trees, walk
from synapse.api.errors import SynapseError
from synapse.http.server import JsonResource


def main() -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        roots, known = [], {}
        for mode, settings in MODES.items():
            (Path(directory) / mode).mkdir()
            for root in trees(Path(directory) / mode, settings):
                table = set(walk(root, ""))
                if not table <= known.keys():
                    roots.append(root)
                known.update(dict.fromkeys(table))
        # A configuration that a later one repeats is not asked.
        roots = [root for n, root in enumerate(roots) if not any(covers(other, root) for other in roots[n + 1:])]
        for method, place, servlet in sorted(known):
            print(method, place, servlet, *samples(place), sep="\t")
        print(flush=True)
        for line in sys.stdin:
            method, path = line.rstrip("\n").split("\t")
            found = {runs(root, method.encode(), path.encode("ascii")) for root in roots} - {None}
            print("\t".join(sorted(found)) or "-")


def covers(other, root) -> bool:
    """Whether all routes of the one are the other's, in the same order where the order counts."""
    return list(walk(root, "")) == [route for route in walk(other, "") if route in set(walk(root, ""))]


class Request:
    """What the routers look at."""

    def __init__(self, method: bytes, path: bytes):
        self.method, self.path, self.uri = method, path, path
        self.prepath = []
        # As `twisted.web.server.Request.process` has it.
        self.postpath = [urllib.parse.unquote_to_bytes(segment) for segment in path[1:].split(b"/")]


def runs(root, method: bytes, path: bytes) -> str | None:
    """Where the request ends up, if something there answers its method."""
    request = Request(method, path)
    try:
        resource = getChildForRequest(root, request)
    except ValueError:  # A NUL in the name of a static file: an error page.
        return None
    if isinstance(resource, JsonResource):
        # Synapse tries one pattern after the other; that none of them matches is known faster from all at once.
        if not any_of(resource).match(path.decode("ascii")):
            return None
        try:
            _callback, _servlet, groups = resource._get_handler_for_request(request)
        except SynapseError:
            return None
        pattern = next(pattern for pattern in resource._routes if pattern.match(path.decode("ascii")))
        kind = groups.get("query_type")
        return pattern.pattern if kind is None else f"{pattern.pattern} {urllib.parse.quote(urllib.parse.unquote(kind))}"
    served = "GET" if method == b"HEAD" else method.decode()
    if served == "OPTIONS" or not any(hasattr(resource, f"{kind}render_{served}") for kind in ("", "_async_")):
        return None
    place = "/" + "/".join(part.decode("latin-1") for part in request.prepath if part)
    is_tree = resource.isLeaf or isinstance(resource, File)
    return f"{place}/*" if is_tree else place


ANY_OF = {}


def any_of(resource: JsonResource) -> re.Pattern:
    """What matches where any pattern of the resource does."""
    if resource not in ANY_OF:
        unnamed = (re.sub(r"\(\?P<\w+>", "(", pattern.pattern) for pattern in resource._routes)
        ANY_OF[resource] = re.compile("|".join(f"(?:{pattern})" for pattern in unnamed))
    return ANY_OF[resource]


def samples(place: str) -> list[str]:
    """Paths that reach it: every alternative, with and without what is optional."""
    if place.endswith("/*"):
        return [place[:-2], place[:-1]]
    if not place.endswith("$"):
        return [place]
    return [sample for sample in expand(patterns.parse(place)) if re.match(place, sample)]


def expand(tree) -> list[str]:
    """The strings of a parsed pattern, one for each choice it leaves."""
    strings = [""]
    for kind, what in tree:
        name = str(kind)
        if name == "LITERAL":
            ends = [chr(what)]
        elif name == "ANY":
            ends = ["."]
        elif name == "AT":
            ends = [""]
        elif name == "SUBPATTERN":
            ends = expand(what[-1])
        elif name == "BRANCH":
            ends = [string for branch in what[1] for string in expand(branch)]
        elif name == "MAX_REPEAT":
            least, most, inner = what
            values = {"NOT_LITERAL": ["!x%3Ay.z"], "ANY": ["a/b%2Fc", ""], "IN": ["m.x"]}.get(str(inner[0][0]))
            ends = values if values and int(most) > 1 else [""] * (least == 0) + expand(inner)
        elif name in ("IN", "NOT_LITERAL"):
            ends = ["x"]
        else:
            raise ValueError(f"no reading of {name}")
        strings = [string + end for string in strings for end in ends]
    return strings


if __name__ == "__main__":
    sys.exit(main())
