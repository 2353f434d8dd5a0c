//! What the operator writes: the gateway file, policy files, and what a policy file compiles to.

pub mod address;
pub mod compiled;
pub mod egress;
pub mod gateway;
pub mod next_hop;
pub mod notary_key;
pub mod policy_file;
mod print;
pub mod route;
pub mod secret;
pub mod settings;
pub mod upstream;
