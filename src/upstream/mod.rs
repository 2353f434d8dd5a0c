//! The way to the homeserver, and to whatever answers in its place on some paths.

pub mod connector;
pub mod directory;
pub mod health;
pub mod pool;
mod replicas;
pub mod service;

pub use connector::Connector;
pub use directory::Directory;
pub use service::{Outgoing, Upstream, Upstreams};
