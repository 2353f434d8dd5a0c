//! The way in: listener, acceptor, connection.

mod acceptor;
pub mod admission;
mod connection;
mod frames;
mod gathered;
mod heads;
pub mod listener;
mod proxy_header;

#[cfg(test)]
mod tests;
