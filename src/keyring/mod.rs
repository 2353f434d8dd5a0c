//! The key ring: keys of other servers, asked of each of them, checked, kept, and handed to Synapse as a notary would.

mod asking;
mod document;
mod entry;
mod fallback;
mod query;
mod ring;

pub use ring::{Keys, Ring};
