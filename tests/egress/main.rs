//! Real Synapses and the doors of the way out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod alone;
mod dead_door;
mod notary;
mod provoked;
mod web;
