//! The `skein` program: daemon and command line in one.

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    let cli = node::cli::Cli::parse();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(4).build() {
            Ok(runtime) => runtime,
            Err(e) => {
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("error: no threads: {e}\n").as_bytes(),
                );
                return std::process::ExitCode::FAILURE;
            }
        };
    match runtime.block_on(node::cli::run(cli)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            node::cli::show_failure(&e);
            std::process::ExitCode::from(e.code)
        }
    }
}
