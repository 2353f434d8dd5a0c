//! TLS as we speak it: rustls with aws-lc-rs, named in each configuration and never a process default.

pub mod ca;
pub mod client;
pub mod leaves;
mod not_after;
pub mod server;
