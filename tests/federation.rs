//! Two real Synapses that federate through two Mantlets under `balanced`: neither has any other way to the other.
//!
//! Each Mantlet's listener is all that the world knows of its homeserver: the server's name is the listener's own
//! `localhost:PORT`, with TLS, for clients and for the other server. What arrives behind each is recorded.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

use std::sync::OnceLock;

use mantlet_testkit::certificate::Authority;

use support::federation::{self, Directions, Side};

/// Each side with the other, once for all tests.
fn directions() -> Directions<'static> {
    static SIDES: OnceLock<[Side; 2]> = OnceLock::new();
    let [one, other] = SIDES.get_or_init(|| {
        let authority = Authority::new().unwrap();
        [Side::start(&authority), Side::start(&authority)]
    });
    [(one, other, "there"), (other, one, "back")]
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
fn the_list_of_rooms_stays_with_its_own_users() {
    federation::the_list_of_rooms_stays_with_its_own_users(directions());
}

#[test]
fn nothing_that_servers_need_is_refused() {
    federation::nothing_that_servers_need_is_refused(directions());
}
