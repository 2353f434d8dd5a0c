//! The parts of a message that the gateway makes, changes or takes away: bodies, JSON in them, hop-by-hop fields, its own answers.

pub mod body;
pub mod hop;
pub mod json;
pub mod request;
pub mod respond;
pub mod rest;

pub use body::Body;
pub use request::{BoxRequest, RequestBody};
pub use respond::Answer;
pub use rest::Rest;

/// What stands in `User-Agent` where a name of one's own would say too much, and nothing at all would be odd.
pub const NEUTRAL_AGENT: &str = "Mozilla/5.0 (compatible)";

/// What is left of Synapse's own `User-Agent` without its version. Our own questions to other servers say the same: they come from where
/// Synapse's come from, and no other word tells whose they are.
pub const SYNAPSE_AGENT: &str = "Synapse";
