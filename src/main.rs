//! The command `mantlet`: argv → verb → exit code.

fn main() -> std::process::ExitCode {
    mantlet::cli::main()
}
