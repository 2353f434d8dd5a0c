//! Any Authorization fields and query.

#![no_main]
#![allow(dead_code, reason = "each target is one of several")]

#[path = "../../tests/mutators/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::token(data));
