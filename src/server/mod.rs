//! The process: sockets, workers, the admin listener.

pub mod admin;
pub mod reuseport;
