//! A row of the leak ledger a file: open at Synapse itself, so that the proof is of something, and closed through Mantlet.
//! Rules without a row stand here too.

mod federation;
mod internal_endpoints;
mod notary;
mod profiles;
mod public_rooms;
mod query_tokens;
mod rate_limit;
mod registration;
mod request_headers;
mod response_headers;
mod room_directory;
mod server_banner;
mod threepid_unbind;
