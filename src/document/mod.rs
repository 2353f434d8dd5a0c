//! TOML documents with places: how a text becomes a tree that knows its lines, and a tree a struct.
//!
//! Read in the order [`source`] (texts and places), [`value`] (the tree), `deserialize` and [`read`](mod@read) (tree to struct,
//! every problem at once). What the files say is for others to know.

mod deserialize;
pub mod read;
pub mod source;
pub mod value;

pub use read::{read, recover};
pub use source::{Sources, read_file};
pub use value::{Table, Value};
