//! What a founding server makes before K3s' first start, kept sealed until it is in the state. Shell.

use std::path::{Path, PathBuf};

use raft_store::model::Sealed;
use raft_store::seal::FleetKey;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::env::Files;
use crate::project::Founding;

const PURPOSE: &str = "founding";

/// The stored form.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Stored {
    agent_secret: String,
    #[serde(default)]
    server_secret: Option<String>,
    root_certificate: String,
    root_key: String,
    authorities: Vec<StoredAuthority>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct StoredAuthority {
    name: String,
    key: String,
    chain: String,
    alone: String,
}

impl From<&Founding> for Stored {
    fn from(f: &Founding) -> Self {
        let authority = |a: &k3s::ca::Authority| StoredAuthority {
            name: a.name.clone(),
            key: a.key.expose().to_owned(),
            chain: a.chain.clone(),
            alone: a.alone.clone(),
        };
        Self {
            agent_secret: f.agent_secret.expose().to_owned(),
            server_secret: f.server_secret.as_ref().map(|s| s.expose().to_owned()),
            root_certificate: f.ca.root_certificate.clone(),
            root_key: f.ca.root_key.expose().to_owned(),
            authorities: f.ca.authorities.iter().map(authority).collect(),
        }
    }
}

impl From<&Stored> for Founding {
    fn from(s: &Stored) -> Self {
        let authority = |a: &StoredAuthority| k3s::ca::Authority {
            name: a.name.clone(),
            key: k3s::Secret::new(a.key.clone()),
            chain: a.chain.clone(),
            alone: a.alone.clone(),
        };
        let ca = k3s::CaBundle {
            authorities: s.authorities.iter().map(authority).collect(),
            root_certificate: s.root_certificate.clone(),
            root_key: k3s::Secret::new(s.root_key.clone()),
        };
        Self {
            ca,
            agent_secret: k3s::Secret::new(s.agent_secret.clone()),
            server_secret: s.server_secret.clone().map(k3s::Secret::new),
        }
    }
}

/// Writes the founding as JSON, to be sealed with the cluster's secrets.
pub fn to_json(f: &Founding) -> String {
    serde_json::to_string(&Stored::from(f)).unwrap_or_default()
}

fn path(dir: &Path, incarnation: &str) -> PathBuf {
    dir.join(format!("founding-{incarnation}.sealed"))
}

/// Returns what this server made for the cluster before, or makes it: the same after each restart.
///
/// # Errors
/// In words, when nothing can be made or stored.
pub fn load_or_make(
    files: &dyn Files,
    dir: &Path,
    incarnation: &str,
    key: &FleetKey,
    (make_ca, random, nonce): (
        impl FnOnce() -> Result<k3s::CaBundle, k3s::CaError>,
        [[u8; 32]; 2],
        [u8; 24],
    ),
) -> Result<Founding, String> {
    let path = path(dir, incarnation);
    if let Ok(bytes) = files.read(&path) {
        let opened =
            key.open(PURPOSE, &Sealed(bytes)).map_err(|e| format!("{}: {e}", path.display()))?;
        let stored: Stored = serde_json::from_slice(opened.expose()).map_err(|e| e.to_string())?;
        return Ok(Founding::from(&stored));
    }
    let ca = make_ca().map_err(|e| e.to_string())?;
    // K3s reads whatever begins with K10 as a token of another form, which hexadecimal digits never do.
    let [agent, server] = random.map(|bytes| k3s::Secret::new(hex::encode(bytes)));
    let founding = Founding { ca, agent_secret: agent, server_secret: Some(server) };
    let sealed = key.seal(PURPOSE, to_json(&founding).as_bytes(), nonce);
    let write = || -> std::io::Result<()> {
        files.private_dir(dir)?;
        files.replace(&path, &sealed.0, 0o600)
    };
    write().map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(founding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::linux::LinuxFiles;

    #[test]
    fn a_founding_is_made_once_and_lies_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let key = FleetKey::from_bytes([1; 32]);
        let make = |b: u8| {
            let ca = || k3s::make_cluster_ca("lab", 1_800_000_000);
            let seeds = (ca, [[b; 32], [b + 100; 32]], [b; 24]);
            load_or_make(&LinuxFiles, dir.path(), "x", &key, seeds)
        };
        let (first, second) = (make(1).unwrap(), make(2).unwrap());
        assert_eq!(first, second);
        let bytes = std::fs::read(path(dir.path(), "x")).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"));
        let server = first.server_secret.as_ref().unwrap().expose();
        assert!(server.len() == 64 && *server != *first.agent_secret.expose());
        let json = to_json(&first);
        assert_eq!(Founding::from(&serde_json::from_str::<Stored>(&json).unwrap()), first);
    }

    #[test]
    fn a_founding_of_before_server_secrets_is_read() {
        let old = r#"{"agent_secret":"a","root_certificate":"c","root_key":"k","authorities":[]}"#;
        let read = Founding::from(&serde_json::from_str::<Stored>(old).unwrap());
        assert_eq!((read.agent_secret.expose(), read.server_secret), ("a", None));
    }
}
