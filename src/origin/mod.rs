//! The way to other servers: found as the Matrix specification says, reached at checked addresses, known by their certificates.

pub mod client;
mod connector;
mod delegation;
mod discovery;
mod media;
mod next_hop;
mod pool;
pub mod resolver;
mod url;
pub mod web;

pub use client::{Client, Follow, Origins};
pub use next_hop::{NextHop, Outward};
pub use resolver::NameServers;
pub use web::{Destination, Web, Webs};
