//! The way in: listener, acceptor, connection.

mod acceptor;
pub mod admission;
mod connection;
pub mod cut;
mod frames;
mod gathered;
pub mod heads;
pub mod listener;
mod proxy_header;

#[cfg(test)]
mod tests;
