//! The real Synapse, real clients and a view of the wire, for Mantlet's tests and its demo.
//!
//! Everything is blocking and on loopback, ends with the value that stands for it, and ends also when the test process
//! is killed. What is missing of Synapse and its clients is installed below cargo's target directory, once.
//!
//! ```no_run
//! use mantlet_testkit::http::Request;
//! use mantlet_testkit::recorder::Recorder;
//! use mantlet_testkit::shared_synapse;
//! use mantlet_testkit::synapse::Role;
//!
//! let synapse = shared_synapse();
//! let alice = synapse.register("alice", "secret", Role::User).unwrap();
//! synapse.create_public_room(&alice, "Lobby", "lobby").unwrap();
//!
//! // Put the gateway's upstream here, and see what reaches Synapse.
//! let recorder = Recorder::start(synapse.addr()).unwrap();
//! let answer = Request::new("GET", "/_matrix/client/v3/publicRooms").header("Origin", "x").send(recorder.addr());
//! assert_eq!(answer.status, 200);
//! assert_eq!(recorder.last().unwrap().header("origin"), Some("x"));
//! ```

#![allow(clippy::panic, reason = "a test that cannot be set up has failed")]

pub mod backend;
pub mod certificate;
pub mod error;
pub mod http;
pub mod js_sdk;
mod lease;
pub mod nginx;
pub mod nio;
pub mod peer;
pub mod program;
mod record;
pub mod recorder;
pub mod release;
pub mod sample;
mod socket;
pub mod synapse;
pub mod tool;
pub mod venv;
mod wire;

use std::sync::OnceLock;

pub use error::{Error, Result};
pub use socket::Address;

use synapse::{Options, Synapse};

/// Returns the one Synapse of this test binary, with default options; panics with its log when it does not start.
///
/// Tests that share it choose user and room names of their own. It ends with the process.
pub fn shared_synapse() -> &'static Synapse {
    static SHARED: OnceLock<Synapse> = OnceLock::new();
    SHARED.get_or_init(|| Synapse::start(Options::default()).unwrap_or_else(|e| panic!("{e:?}")))
}
