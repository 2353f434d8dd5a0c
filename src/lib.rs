#![doc = include_str!("../README.md")]

// Each module uses what stands above it and nothing below; `tests/it/layers.rs` reads the imports and holds this true.
pub mod addresses;
pub mod matrix;
pub mod units;
pub mod problem;
pub mod document;
pub mod error;
pub mod message;
pub mod policy;
pub mod rules;
pub mod config;
pub mod tls;
pub mod homeserver;
pub mod observe;
pub mod store;
pub mod ledger;
pub mod snapshot;
pub mod upstream;
pub mod origin;
pub mod events;
pub mod keyring;
pub mod stack;
pub mod egress;
pub mod ingress;
pub mod server;
pub mod cli;
