//! The way to the homeserver.

pub mod connector;
pub mod pool;
pub mod synapse;

pub use connector::Connector;
pub use synapse::Synapse;
