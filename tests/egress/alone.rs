//! Two without a network: each has its Mantlet's federation door, and whatever others do with each other, they do.
//!
//! The door is a unix socket, and so is the way in, so that each Synapse can have a network of its own in which nobody is, and every
//! packet is seen.
//! One is found by its `.well-known`, the other by a service record. One has the default notary, the other believes Mantlet's
//! signature only.

use std::sync::OnceLock;

use mantlet_testkit::certificate::Authority;
use mantlet_testkit::tool::namespaces;
use serde_json::{Value, json};

use crate::contacts_with;
use crate::support::federation::{self, Directions, Notary, Outside, Side};

struct World {
    outside: Outside,
    sides: [Side; 2],
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let authority = Authority::new().unwrap();
        let outside = Outside::start(&authority, "hs1.test", "hs2.test");
        let sides = [("hs1.test", Notary::Default), ("hs2.test", Notary::Pinned)]
            .map(|(name, notary)| Side::start_behind_a_door(&authority, name, &outside, notary));
        World { outside, sides }
    })
}

/// Each side with the other.
fn directions() -> Directions<'static> {
    let [one, other] = &world().sides;
    [(one, other, "there"), (other, one, "back")]
}

#[test]
fn synapse_reaches_nobody_but_the_door() {
    federation::a_profile_is_read_from_the_other_server(
        directions().map(|(here, there, way)| (here, there, if way == "there" { "alone" } else { "alone-back" })),
    );
    for side in &world().sides {
        let attempts = side.attempts();
        let door = format!("socket.connect {}", side.door());
        assert!(!attempts.is_empty() && attempts.iter().all(|attempt| *attempt == door), "{attempts:#?}");
    }
}

#[test]
fn no_packet_leaves_synapse_and_none_asks_the_dns() {
    let named =
        || directions().map(|(here, there, way)| (here, there, if way == "there" { "packet" } else { "packet-back" }));
    federation::a_profile_is_read_from_the_other_server(named());
    federation::a_room_is_found_and_joined_by_its_alias_and_both_sides_talk(named());
    federation::media_come_over_with_a_token_and_every_byte(named());
    federation::device_keys_are_found_on_the_other_server(named());
    if namespaces().unwrap() {
        for side in &world().sides {
            assert_eq!(side.packets(), [], "{}", side.name());
        }
    }
}

#[test]
fn keys_come_from_their_servers_and_the_notary_hears_of_nobody() {
    federation::device_keys_are_found_on_the_other_server(
        directions().map(|(here, there, way)| (here, there, if way == "there" { "notary" } else { "notary-back" })),
    );
    for side in &world().sides {
        let is = |record: &Value, endpoint: &str| record["flow"] == "egress" && record["endpoint"] == endpoint;
        let records = side.records_with(|record| is(record, "key_get_remote_server_keys_batch"));
        let answered: Vec<_> = records.iter().filter(|record| is(record, "key_get_remote_server_keys_batch")).collect();
        for record in &answered {
            let said = ["upstream", "rule", "status"].map(|field| &record[field]);
            assert_eq!(said, [&json!("(key ring)"), &json!("notary"), &json!(200)], "{record}");
        }
        // What it did not believe, Synapse would ask for itself.
        assert!(!records.iter().any(|record| is(record, "key_get_server_keys")), "{records:#?}");
    }
    let outside = world().outside.asked();
    assert!(outside.iter().all(|request| request.header("host") != Some("matrix.org")));
    let looked_up = world().outside.looked_up();
    assert!(
        !looked_up.is_empty() && !looked_up.iter().any(|name| name.contains("matrix.org") || name.contains("invalid"))
    );
}

#[test]
fn the_ledger_says_whom_synapse_asked_and_what_for() {
    let named =
        || directions().map(|(here, there, way)| (here, there, if way == "there" { "ledger" } else { "ledger-back" }));
    federation::a_profile_is_read_from_the_other_server(named());
    federation::media_come_over_with_a_token_and_every_byte(named());
    for (here, there, notary) in [(0, 1, "matrix.org"), (1, 0, "notary.invalid")] {
        let [here, there] = [here, there].map(|side: usize| &world().sides[side]);
        let is = |contact: &Value, to: &str, cause: &str, verdict: &str| {
            ["destination", "cause", "verdict", "door"].map(|key| &contact[key]) == [to, cause, verdict, "federation"]
        };
        let wanted = [
            (there.name(), "federation", "passed"),
            (there.name(), "media", "passed"),
            // By the key ring, for Synapse.
            (there.name(), "keys", "passed"),
            (notary, "keys", "answered"),
        ];
        let contacts = contacts_with(
            || here.contacts(),
            |contacts| {
                wanted.iter().all(|(to, cause, verdict)| contacts.iter().any(|contact| is(contact, to, cause, verdict)))
            },
        );
        let media = contacts.iter().find(|contact| is(contact, there.name(), "media", "passed")).unwrap();
        assert!(media["bytes_in"].as_u64().unwrap() >= 3_000_000, "{media}");
        // Nobody else: no notary, and nobody whom this test did not name.
        let known = |contact: &Value| {
            let to = contact["destination"].as_str().unwrap();
            is(contact, notary, "keys", "answered") || to.split(':').next() == Some(there.name())
        };
        assert!(contacts.iter().all(known), "{contacts:#?}");
    }
}

#[test]
fn a_profile_is_read_from_the_other_server() {
    federation::a_profile_is_read_from_the_other_server(directions());
}

#[test]
fn a_room_is_found_and_joined_by_its_alias_and_both_sides_talk() {
    federation::a_room_is_found_and_joined_by_its_alias_and_both_sides_talk(directions());
}

#[test]
fn an_invitation_is_taken_and_another_is_declined() {
    federation::an_invitation_is_taken_and_another_is_declined(directions());
}

#[test]
fn media_come_over_with_a_token_and_every_byte() {
    federation::media_come_over_with_a_token_and_every_byte(directions());
}

#[test]
fn device_keys_are_found_on_the_other_server() {
    federation::device_keys_are_found_on_the_other_server(directions());
}

#[test]
fn the_list_of_rooms_is_read_where_it_is_open() {
    federation::the_list_of_rooms_is_read_where_it_is_open(directions());
}

#[test]
fn nothing_that_servers_need_is_refused() {
    federation::nothing_that_servers_need_is_refused(directions());
}
