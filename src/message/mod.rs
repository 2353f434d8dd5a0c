//! The parts of a message that the gateway makes or takes away: bodies, hop-by-hop fields, its own answers.

pub mod body;
pub mod hop;
pub mod respond;

pub use body::{Body, BoxRequest, RequestBody};
pub use respond::Answer;
