//! A row of the leak ledger a file: open at Synapse itself, so that the proof is of something, and closed through Mantlet.

mod federation;
mod profiles;
mod public_rooms;
mod request_headers;
mod server_banner;
mod threepid_unbind;
