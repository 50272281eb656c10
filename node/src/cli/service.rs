//! skein.service: how the daemon survives a reboot. Shell.

use std::path::Path;
use std::process::Command;

use api::client::ApiError;
use api::status::detail;

use super::{Places, output};
use crate::files;

const UNIT: &str = "/etc/systemd/system/skein.service";

fn unit(binary: &Path, places: &Places) -> String {
    let config =
        places.config.as_ref().map(|c| format!(" --config {}", c.display())).unwrap_or_default();
    format!(
        "[Unit]\n\
         Description=Skein, a K3s platform without a central server\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} daemon --state-dir {}{config}\n\
         Restart=always\n\
         RestartSec=1s\n\
         KillMode=process\n\
         TimeoutStopSec=15s\n\
         LimitNOFILE=1048576\n\
         TasksMax=infinity\n\
         RuntimeDirectory=skein\n\
         RuntimeDirectoryMode=0700\n\
         RuntimeDirectoryPreserve=yes\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        binary.display(),
        places.state_dir.display(),
    )
}

fn failed(why: impl std::fmt::Display, next: &str) -> ApiError {
    detail("service", "skein.service was not started", why.to_string(), next).into()
}

/// Installs and starts the unit; it starts again at each boot.
pub(super) fn install(places: &Places) -> Result<(), ApiError> {
    const FOREGROUND: &str =
        "run the command again with --foreground, and let your own supervisor start `skein daemon`";
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(failed("systemd does not run on this machine", FOREGROUND));
    }
    let binary = std::env::current_exe().map_err(|e| failed(e, FOREGROUND))?;
    files::replace(Path::new(UNIT), unit(&binary, places).as_bytes(), 0o644)
        .map_err(|e| failed(format!("{UNIT}: {e}"), "run the command again as root"))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "skein.service"])?;
    output::note("skein.service runs and will start at each boot");
    Ok(())
}

fn systemctl(args: &[&str]) -> Result<(), ApiError> {
    let out = Command::new("systemctl").args(args).output();
    let next = "see: journalctl -u skein.service -n 50";
    let out = out.map_err(|e| failed(format!("systemctl {}: {e}", args.join(" ")), next))?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(failed(format!("systemctl {}: {text}", args.join(" ")), next))
}
