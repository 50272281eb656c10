//! The `skein` program: daemon and command line in one.

fn main() -> std::process::ExitCode {
    node::cli::main(&node::env::linux::LinuxMachine)
}
