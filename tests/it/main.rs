//! Mantlet as a process among others, judged by what the far side saw: real sockets, free ports, no sleeps.

#[path = "../support/mod.rs"]
mod support;

mod canary;
mod cli;
mod common;
mod exchanges;
mod layers;
mod policies;
mod pool;
mod process;
mod proxy;
mod reload;
mod routes;
mod streams;
mod tls;
mod tokens;
