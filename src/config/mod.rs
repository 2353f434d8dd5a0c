//! What the operator writes: the gateway file, policy files, and how both are read.
//!
//! Read in the order `source` (texts and places), `value` (the tree), `deserialize` and `read` (tree → struct, every problem
//! at once), then the two kinds of file.

mod address;
mod deserialize;
pub mod gateway;
pub mod policy_file;
mod print;
pub mod read;
pub mod settings;
pub mod source;
pub mod value;

pub use address::{AdminAddress, UpstreamAddress};
pub use gateway::{Door, Gateway, Listener, PolicySource, TlsFiles};
pub use policy_file::{BuiltIn, PolicyFile, Unknown, UnknownPolicy};
pub use read::read;
pub use settings::{AccessLog, Forwarded, Homeserver, Limits, Log, LogLevel, Tokens, Workers};
pub use source::Sources;
pub use value::{Table, Value};
