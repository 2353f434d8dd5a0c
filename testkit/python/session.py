"""A full session of two users with matrix-nio.

    session.py '{"homeserver": URL, "ca": FILE or null, "users": [[NAME, PASSWORD], [NAME, PASSWORD]] or null}'

Prints a JSON line for each check, {"check", "ok", "detail"?}; exits with 1 at the first that fails.
"""

import asyncio
import io
import json
import os
import secrets
import ssl
import sys
import time
import traceback

from nio import AsyncClient, AsyncClientConfig, RoomMessageText, RoomPreset, RoomVisibility
from nio.responses import ErrorResponse

LIMIT = 120  # seconds for everything
LISTED = 20  # seconds until a room is in the directory
IDLE = 1.0  # seconds that a long poll has nothing to say
UPLOAD = 5 * 1024 * 1024


async def session(options):
    tls = ssl.create_default_context(cafile=options["ca"]) if options.get("ca") else None
    names = options["users"] or [["nio-" + secrets.token_hex(4), secrets.token_hex(8)] for _ in range(2)]
    # Three, because by default it retries for ever.
    config = AsyncClientConfig(max_timeouts=3, max_limit_exceeded=3, request_timeout=60)
    clients = [AsyncClient(options["homeserver"], name, ssl=tls, config=config) for name, _ in names]
    try:
        await talk(clients, [password for _, password in names], register=options["users"] is None)
    finally:
        for client in clients:
            await client.close()


async def talk(clients, passwords, register):
    alice, bob = clients
    for client, password in zip(clients, passwords):
        if register:
            await check("register", client.register(client.user, password))
            await check("whoami", client.whoami())
        else:
            await check("login", client.login(password, device_name="session"))
    for client in clients:
        await check("sync", client.sync(timeout=0, full_state=True))

    name = "Alice %s" % secrets.token_hex(3)
    await check("set_displayname", alice.set_displayname(name))
    profile = await check("get_profile", bob.get_profile(alice.user_id))
    expect("profile_is_what_was_set", profile.displayname == name, profile.displayname)

    alias = "room-%s" % secrets.token_hex(4)
    server = alice.user_id.split(":", 1)[1]
    created = alice.room_create(
        RoomVisibility.public, alias=alias, name=alias, preset=RoomPreset.public_chat
    )
    room = await check("room_create", created)
    await check("public_rooms", public_rooms(bob))
    expect("the_room_is_listed", *await until_listed(bob, room.room_id))
    resolved = await check("resolve_alias", bob.room_resolve_alias("#%s:%s" % (alias, server)))
    expect("the_alias_names_the_room", resolved.room_id == room.room_id, resolved.room_id)
    await check("join_by_alias", bob.join("#%s:%s" % (alias, server)))
    for client in clients:
        await check("sync_after_join", client.sync(timeout=0))

    await long_poll(alice, bob, room.room_id)
    await media(alice, bob)

    token = alice.access_token
    for client in clients:
        await check("logout", client.logout())
    status = await whoami_status(alice, token)
    expect("the_token_is_dead", status == 401, status)


async def public_rooms(client):
    """nio has no call for the directory."""
    headers = {"Authorization": "Bearer " + client.access_token}
    response = await client.send("GET", "/_matrix/client/v3/publicRooms?limit=1000", headers=headers)
    body = await response.json()
    return body if response.status == 200 else ErrorResponse(str(response.status) + " " + json.dumps(body))


async def until_listed(client, room_id):
    """Synapse enters a room behind its answer, and whoever asks while another asks is told what that one is told."""
    end = time.monotonic() + LISTED
    while True:
        listed = await public_rooms(client)
        found = not isinstance(listed, ErrorResponse) and room_id in [entry["room_id"] for entry in listed["chunk"]]
        if found or time.monotonic() > end:
            return found, listed
        await asyncio.sleep(0.05)


async def long_poll(alice, bob, room_id):
    """Bob waits in /sync while nothing happens, until Alice writes."""
    heard = asyncio.get_running_loop().create_future()

    def hear(room, event):
        if room.room_id == room_id and not heard.done():
            heard.set_result(event.body)

    bob.add_event_callback(hear, RoomMessageText)
    # Whatever else happens in the room (the join) has been told before the waiting begins.
    while (await bob.sync(timeout=100)).rooms.join:
        pass
    waiting = asyncio.create_task(bob.sync(timeout=30_000))
    done, _ = await asyncio.wait([waiting], timeout=IDLE)
    expect("the_long_poll_waits", not done, repr(done))
    text = "hello %s \u2603" % secrets.token_hex(4)
    since = time.monotonic()
    await check("send", alice.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": text}))
    await check("long_poll", waiting)
    expect("the_message_arrives", heard.done() and heard.result() == text, heard)
    expect("it_arrives_at_once", time.monotonic() - since < 10, time.monotonic() - since)


async def media(alice, bob):
    data = os.urandom(UPLOAD)
    uploaded, _ = await alice.upload(
        io.BytesIO(data), content_type="application/octet-stream", filename="five.bin", filesize=len(data)
    )
    uploaded = await check("upload", done(uploaded))
    downloaded = await check("download", bob.download(mxc=uploaded.content_uri))
    expect("the_bytes_are_the_same", downloaded.body == data, len(downloaded.body))
    server, media_id = uploaded.content_uri.removeprefix("mxc://").split("/")
    response = await bob.send("GET", "/_matrix/client/v1/media/download/%s/%s" % (server, media_id))
    await response.read()
    expect("a_download_needs_a_token", response.status == 401, response.status)


async def whoami_status(client, token):
    """nio has forgotten the token by now."""
    headers = {"Authorization": "Bearer " + token}
    response = await client.send("GET", "/_matrix/client/v3/account/whoami", headers=headers)
    await response.read()
    return response.status


async def done(value):
    return value


async def check(name, call):
    """Awaits a call, prints how it went, and returns its answer."""
    try:
        answer = await call
    except Exception as error:  # whatever it is, it is the check's outcome
        fail(name, "%s: %s" % (type(error).__name__, error))
    if isinstance(answer, ErrorResponse):
        fail(name, str(answer))
    say({"check": name, "ok": True})
    return answer


def expect(name, held, seen):
    if not held:
        fail(name, "saw %s" % (seen,))
    say({"check": name, "ok": True})


def fail(name, detail):
    say({"check": name, "ok": False, "detail": str(detail)[:2000]})
    raise SystemExit(1)


def say(value):
    print(json.dumps(value), flush=True)


def main():
    try:
        asyncio.run(asyncio.wait_for(session(json.loads(sys.argv[1])), LIMIT))
    except Exception:
        fail("session", traceback.format_exc())


if __name__ == "__main__":
    main()
