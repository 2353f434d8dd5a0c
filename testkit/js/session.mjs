// A session of two users with matrix-js-sdk.
//
//     session.mjs '{"sdk": DIRECTORY, "homeserver": URL, "users": [[NAME, PASSWORD], [NAME, PASSWORD]] or null}'
//
// Prints a JSON line for each check, {"check", "ok", "detail"?}; exits with 1 at the first that fails.

import { randomBytes, webcrypto } from "node:crypto";
import { pathToFileURL } from "node:url";

// The SDK asks for Node 22. Of what it uses here, older ones lack no more than these.
Promise.withResolvers ??= function () {
    let resolve, reject;
    const promise = new Promise((yes, no) => ([resolve, reject] = [yes, no]));
    return { promise, resolve, reject };
};
globalThis.crypto ??= webcrypto;

const LIMIT = 120_000; // milliseconds for everything
const LISTED = 20_000; // milliseconds until a room is in the directory
const IDLE = 1_000; // milliseconds that a long poll has nothing to say
const UPLOAD = 300_000;

const options = JSON.parse(process.argv[2]);
const sdk = await import(new URL("node_modules/matrix-js-sdk/lib/index.js", pathToFileURL(options.sdk + "/")).href);

// What the SDK says goes nowhere: standard output is for the checks.
const silent = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => silent };

function say(check, ok, detail) {
    console.log(JSON.stringify(ok ? { check, ok } : { check, ok, detail: String(detail) }));
    if (!ok) process.exit(1);
}

// Waits for an answer, which is a check of its own.
async function check(name, promise) {
    try {
        const answer = await promise;
        say(name, true);
        return answer;
    } catch (error) {
        say(name, false, error?.stack ?? error);
    }
}

function connect(login) {
    const { user_id: userId, access_token: accessToken, device_id: deviceId } = login ?? {};
    return sdk.createClient({ baseUrl: options.homeserver, userId, accessToken, deviceId, logger: silent });
}

async function enter([user, password]) {
    const stranger = connect();
    if (options.users === null) {
        const auth = { type: "m.login.dummy" };
        return check("register", stranger.registerRequest({ username: user, password, auth }));
    }
    const identifier = { type: "m.id.user", user };
    return check("login", stranger.loginRequest({ type: "m.login.password", identifier, password }));
}

async function prepared(client) {
    const ready = new Promise((resolve, reject) => {
        client.on(sdk.ClientEvent.Sync, (state, _, data) => {
            if (state === "PREPARED") resolve();
            if (state === "ERROR") reject(data?.error);
        });
    });
    await client.startClient({ initialSyncLimit: 10, pollTimeout: 20_000 });
    await check("sync", ready);
}

function message(client, text) {
    return new Promise((resolve) => {
        client.on(sdk.RoomEvent.Timeline, (event) => event.getContent().body === text && resolve(event));
    });
}

// Synapse enters a room behind its answer, and whoever asks while another asks is told what that one is told.
async function untilListed(client, room) {
    for (const end = Date.now() + LISTED; ; await new Promise((resolve) => setTimeout(resolve, 50))) {
        const listed = await client.publicRooms({ limit: 1000 });
        if (listed.chunk.some((each) => each.room_id === room)) return;
        if (Date.now() > end) throw new Error(`${room} is not in ${JSON.stringify(listed)}`);
    }
}

async function session() {
    const users = options.users ?? [0, 1].map(() => ["js-" + randomBytes(4).toString("hex"), randomBytes(8).toString("hex")]);
    const [alice, bob] = [connect(await enter(users[0])), connect(await enter(users[1]))];
    await check("whoami", alice.whoami());
    await Promise.all([prepared(alice), prepared(bob)]);

    const name = "Alice " + randomBytes(3).toString("hex");
    await check("set_display_name", alice.setDisplayName(name));
    const profile = await check("get_profile", bob.getProfileInfo(alice.getUserId()));
    say("the_profile_is_what_was_set", profile.displayname === name, JSON.stringify(profile));

    const alias = "js-" + randomBytes(4).toString("hex");
    const asked = { preset: "public_chat", visibility: "public", name: alias, room_alias_name: alias };
    const { room_id: room } = await check("create_room", alice.createRoom(asked));
    await check("public_rooms", bob.publicRooms({ limit: 1000 }));
    await check("the_room_is_listed", untilListed(bob, room));
    const joined = await check("join_by_alias", bob.joinRoom(`#${alias}:${alice.getDomain()}`));
    say("it_is_the_room", joined.roomId === room, joined.roomId);

    const text = randomBytes(8).toString("hex");
    const arrival = message(bob, text);
    await new Promise((resolve) => setTimeout(resolve, IDLE));
    await check("send_text", alice.sendTextMessage(room, text));
    await check("the_message_arrives", arrival);

    const bytes = randomBytes(UPLOAD);
    const { content_uri: uri } = await check("upload", alice.uploadContent(bytes, { type: "application/octet-stream" }));
    const url = bob.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
    const download = await check("download", fetch(url, { headers: { Authorization: `Bearer ${bob.getAccessToken()}` } }));
    const same = bytes.equals(Buffer.from(await download.arrayBuffer()));
    say("the_bytes_are_the_same", download.status === 200 && same, download.status);
    say("a_download_needs_a_token", (await fetch(url)).status === 401);

    await check("rename_a_device", alice.setDeviceDetails(alice.getDeviceId(), { display_name: "renamed" }));
    const device = await check("get_device", alice.getDevice(alice.getDeviceId()));
    say("the_device_has_its_name", device.display_name === "renamed", JSON.stringify(device));
    const openid = await check("openid_token", bob.getOpenIdToken());
    const userinfo = `${options.homeserver}/_matrix/federation/v1/openid/userinfo?access_token=${openid.access_token}`;
    const told = await (await fetch(userinfo)).json();
    say("a_widget_learns_its_user", told.sub === bob.getUserId(), JSON.stringify(told));

    await check("leave", bob.leave(room));
    const token = bob.getAccessToken();
    await check("logout", bob.logout(true));
    const dead = await fetch(`${options.homeserver}/_matrix/client/v3/publicRooms`, {
        headers: { Authorization: `Bearer ${token}` },
    });
    say("the_token_is_dead", dead.status === 401, dead.status);
    await check("logout", alice.logout(true));
}

setTimeout(() => say("in_time", false, `not done after ${LIMIT} ms`), LIMIT).unref();
await session().catch((error) => say("session", false, error?.stack ?? error));
// The SDK may leave timers behind.
process.exit(0);
