//! Mantlet as a process among others, judged by what the far side saw: real sockets, free ports, no sleeps.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../support/mod.rs"]
mod support;

mod authority;
mod bodies;
mod canary;
mod cli;
mod common;
mod corpus;
mod endurance;
mod exchanges;
mod fallback;
mod faults;
mod federation_door;
mod federation_media;
mod federation_names;
mod floods;
mod heads;
mod homeserver;
mod interception;
mod kept_keys;
mod layers;
mod ledger;
mod listeners;
mod next_hop;
mod notary;
mod notary_doors;
mod policies;
mod pool;
mod privacy_events;
mod process;
mod proxy;
mod proxy_door;
mod registration;
mod reload;
mod rest;
mod routes;
mod ssrf;
mod streams;
mod tls;
mod tokens;
