//! What one machine is told in `skein.toml`; everything else is replicated. Shell: reads one file.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The port of the API and of Raft, on every address.
pub const API_PORT: u16 = 7443;
/// Where the daemon keeps what must survive a restart.
pub const STATE_DIR: &str = "/var/lib/skein";
/// Where the configuration is looked for.
pub const CONFIG_FILE: &str = "/etc/skein/skein.toml";
/// Where the daemon listens for commands from its own machine.
pub const SOCKET: &str = "/run/skein/skein.sock";

/// The settings of one machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node's name; the host's name by default.
    pub name: Option<String>,
    /// Where the API and Raft listen.
    pub listen: SocketAddr,
    /// Where plain HTTP (health, metrics, status) listens.
    pub http: SocketAddr,
    /// Addresses to tell others, instead of all of this host's.
    pub advertise: Vec<SocketAddr>,
    /// Raft's timers: `fast`, `lan` or `wan`.
    pub timers: Timers,
    /// How many threads carry one overlay network, rounded down to a power of two, 8 at most; by default one, two from three
    /// cores on, four from eight on.
    pub packet_threads: Option<NonZeroU32>,
    /// Where K3s comes from and how it is run.
    pub k3s: K3sConfig,
}

/// Raft's timers, by the round trip between voters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timers {
    /// Below 2 ms and an SSD.
    Fast,
    /// Below 10 ms.
    #[default]
    Lan,
    /// Below 80 ms.
    Wan,
}

/// Where K3s comes from and how it is run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct K3sConfig {
    /// A K3s binary on this machine.
    pub binary: Option<PathBuf>,
    /// Where to download K3s from, if not from a path.
    pub url: Option<String>,
    /// The download's (or the binary's) SHA-256, in hexadecimal.
    pub sha256: Option<String>,
    /// `auto`, `systemd` or `process`.
    pub manager: Manager,
    /// K3s' data folder.
    pub data_dir: Option<PathBuf>,
}

/// What keeps K3s running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// systemd where it is process 1, else `process`.
    #[default]
    Auto,
    /// Units of systemd.
    Systemd,
    /// A process of its own session, supervised by the daemon.
    Process,
}

/// Why the configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The file's text is wrong.
    #[error("{path} is wrong: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and how.
        why: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            listen: SocketAddr::from(([0u16; 8], API_PORT)),
            http: SocketAddr::from(([127, 0, 0, 1], 7480)),
            advertise: Vec::new(),
            timers: Timers::Lan,
            packet_threads: None,
            k3s: K3sConfig::default(),
        }
    }
}

impl Config {
    /// Reads the file, or takes the defaults where it does not exist and was not asked for by name.
    ///
    /// # Errors
    /// When the file cannot be read or says something unknown.
    pub fn load(path: &Path, required: bool) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
            Err(source) => {
                return Err(ConfigError::Read { path: path.to_owned(), source });
            }
        };
        Self::parse(&text).map_err(|why| ConfigError::Parse { path: path.to_owned(), why })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
            format!("line {}: {}", before.matches('\n').count() + 1, e.message())
        })?;
        let k3s = &config.k3s;
        if k3s.binary.is_some() && k3s.url.is_some() {
            return Err("[k3s] has both `binary` and `url`: keep one".into());
        }
        if k3s.url.is_some() && k3s.sha256.is_none() {
            return Err("[k3s] has a `url` without `sha256`: K3s is not run unchecked".into());
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_without_a_file() {
        let config = Config::load(Path::new("/nonexistent/skein.toml"), false).unwrap();
        assert_eq!(config.listen.port(), API_PORT);
        assert!(config.http.ip().is_loopback());
        assert!(Config::load(Path::new("/nonexistent/skein.toml"), true).is_err());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(Config::parse("nmae = 'a'").unwrap_err().contains("nmae"));
        assert!(Config::parse("[k3s]\nurl = 'https://x'").unwrap_err().contains("sha256"));
        let ok = Config::parse("[k3s]\nbinary = '/opt/k3s'\nmanager = 'process'").unwrap();
        assert_eq!(ok.k3s.manager, Manager::Process);
    }
}
