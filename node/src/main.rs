//! The `skein` program: daemon and command line in one.

use clap::Parser as _;
use clap::error::ErrorKind;

fn main() -> std::process::ExitCode {
    let cli = match node::cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e)
            if e.use_stderr()
                && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            let e = node::cli::misunderstood(&e);
            node::cli::show_failure(&e);
            return std::process::ExitCode::from(e.code);
        }
        Err(e) => e.exit(),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.enable_all().worker_threads(node::THREADS).build() {
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
