//! The rehearsal: a stand-in with K3s' command line, files, tokens and port 6443, and no Kubernetes behind them.
//!
//! It lets a lab come up in seconds anywhere. What it proves is that Skein drives K3s' contract; pods, etcd and
//! scheduling it has none. Wherever it shows, it is called rehearsal.

mod client;
mod kubectl;
mod options;
pub(crate) mod pki;
mod server;
mod table;

use std::path::Path;
use std::time::Duration;

use options::Options;

/// What `--version` and Kubernetes' API say.
pub(crate) const VERSION: &str = "v1.34.4+rehearsal";

/// Flags that it knows; `--help` lists them, since Skein asks.
const SERVER_FLAGS: [&str; 24] = [
    "config",
    "data-dir",
    "node-name",
    "node-ip",
    "advertise-address",
    "flannel-iface",
    "flannel-backend",
    "flannel-ipv6-masq",
    "tls-san",
    "cluster-init",
    "server",
    "token",
    "agent-token",
    "secrets-encryption",
    "cluster-cidr",
    "service-cidr",
    "disable-network-policy",
    "disable",
    "write-kubeconfig-mode",
    "etcd-arg",
    "kubelet-arg",
    "tls-san-security",
    "embedded-registry",
    "node-label",
];
const AGENT_FLAGS: [&str; 9] = [
    "config",
    "data-dir",
    "node-name",
    "node-ip",
    "flannel-iface",
    "server",
    "token",
    "kubelet-arg",
    "node-label",
];

/// Runs it with K3s' arguments.
///
/// # Errors
/// What K3s would end with.
pub fn run(args: &[String]) -> Result<u8, String> {
    let verb = args.first().map(String::as_str).unwrap_or_default();
    let help = args.iter().any(|a| a == "--help" || a == "-h");
    match verb {
        "--version" | "-v" => {
            crate::lab::print(format!("k3s version {VERSION} (rehearsal)"));
            Ok(0)
        }
        "server" | "agent" if help => {
            crate::lab::print(usage(verb));
            Ok(0)
        }
        "server" | "agent" => {
            let options = Options::read(verb == "server", &args[1..])?;
            runtime()?.block_on(async {
                if verb == "server" {
                    server::run(&options).await
                } else {
                    client::run_agent(&options).await
                }
            })?;
            Ok(0)
        }
        "kubectl" => runtime()?.block_on(kubectl::run(&args[1..])),
        _ => Err(format!(
            "k3s rehearsal: unknown command {verb:?}; it has server, agent, kubectl and --version"
        )),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| format!("k3s rehearsal: {e}"))
}

fn usage(verb: &str) -> String {
    let flags: &[&str] = if verb == "server" { &SERVER_FLAGS } else { &AGENT_FLAGS };
    let lines: Vec<String> = flags.iter().map(|f| format!("   --{f} value  (rehearsal)")).collect();
    format!("NAME:\n   k3s {verb} - rehearsal\n\nOPTIONS:\n{}", lines.join("\n"))
}

/// Says that the service is up, where systemd listens (sd_notify(3)).
fn notify_ready() {
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Ok(socket) = std::os::unix::net::UnixDatagram::unbound()
    {
        let _ = socket.send_to(b"READY=1", path);
    }
}

fn log(text: impl std::fmt::Display) {
    crate::lab::say(format!("k3s rehearsal: {text}"));
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let wrong = |e: std::io::Error| format!("{}: {e}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(wrong)?;
    }
    let temporary = path.with_extension("rehearsal-tmp");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary);
    std::io::Write::write_all(&mut file.map_err(wrong)?, text.as_bytes()).map_err(wrong)?;
    std::fs::rename(&temporary, path).map_err(wrong)
}

const SECOND: Duration = Duration::from_secs(1);
