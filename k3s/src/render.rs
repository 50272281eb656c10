//! K3s' configuration as files: what a spec means for this release on this host. Pure.

use std::path::{Path, PathBuf};

/// K3s' folders on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Holds `config.yaml`, `config.yaml.d` and `k3s.yaml`.
    pub config_dir: PathBuf,
    /// K3s' data directory.
    pub data_dir: PathBuf,
    /// systemd's folder for units of the administrator.
    pub unit_dir: PathBuf,
    /// The log of a supervised process.
    pub log: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            config_dir: Path::new("/etc/rancher/k3s").to_owned(),
            data_dir: Path::new("/var/lib/rancher/k3s").to_owned(),
            unit_dir: Path::new("/etc/systemd/system").to_owned(),
            log: Path::new("/var/log/k3s.log").to_owned(),
        }
    }
}
