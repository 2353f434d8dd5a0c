//! What needs more than Rust, Python and PyPI: nginx before Mantlet, and a web client's library on Node.js.
//!
//! A missing tool is a failure that names its Debian package, unless `MANTLET_WITHOUT` names the tool.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod js_sdk;
mod nginx;
