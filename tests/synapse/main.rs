//! The real Synapse behind Mantlet: each leak shown open without it and closed with it, and what must go on working.
//!
//! Synapse is set up to protect nothing, so that whatever is closed here was closed by Mantlet.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod arrives;
mod cors;
mod redirects;
mod differential;
mod remembered;
mod restart;
mod routes;
mod rows;
mod sessions;
mod unix;
mod uploads;
mod world;
