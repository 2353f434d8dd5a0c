//! The command `mantlet`: argv → verb → exit code.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    mantlet::cli::main()
}
