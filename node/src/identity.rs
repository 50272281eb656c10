//! A machine's identity on its own disk: keys that never leave it, certificate, membership. Shell.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use raft_store::model::{Name, NodeId, PublicKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::env::Files;

/// What a machine is called in the fleet, written when it has become a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Its fleet.
    pub fleet: Uuid,
    /// Its Raft id.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
}

/// The file that ties the rest together.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct IdentityFile {
    version: u32,
    uuid: Uuid,
    /// The request under which it asked to join, so that a repeated attempt is the same request.
    request: Uuid,
    /// Absent until it is a member.
    membership: Option<Membership>,
}

const VERSION: u32 = 1;

/// A machine's own keys and papers.
pub struct Identity {
    dir: PathBuf,
    file: IdentityFile,
    tls_key_pem: Zeroizing<String>,
    wireguard: Zeroizing<[u8; 32]>,
    sealing: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why a machine's identity could not be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("this machine belongs to no fleet: {0} holds no identity")]
    Missing(PathBuf),
    /// The machine started to join but was not admitted yet.
    #[error("this machine has not been admitted to a fleet yet")]
    NotMember,
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file's content is wrong.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// A newer daemon wrote it.
    #[error("{path} was written by a newer skein (format {found}, this one knows {VERSION})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl IdentityError {
    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::Missing(_) => {
                "run `skein init` on the first machine, or `skein join TICKET` on another"
            }
            Self::NotMember => {
                "run `skein join TICKET` again, or `skein init` if it is to found a fleet"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free space there and run the command again"
            }
            Self::Io { .. } => "mend the state folder and run the command again",
            Self::Damaged { .. } => {
                "put the file back, or empty the state folder and run `skein join TICKET --replaces NAME`"
            }
            Self::Newer { .. } => {
                "install the newer skein on this machine again; nothing was changed"
            }
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> IdentityError + '_ {
    move |source| IdentityError::Io { path: path.to_owned(), source }
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), why: why.to_string() }
}

impl Identity {
    /// Reads the identity in `dir`.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn load(files: &dyn Files, dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join("identity.json");
        let bytes = match files.read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::Missing(dir.to_owned()));
            }
            Err(e) => return Err(io_error(&path)(e)),
        };
        let version = serde_json::from_slice::<serde_json::Value>(&bytes)
            .ok()
            .and_then(|v| v["version"].as_u64())
            .ok_or_else(|| damaged(&path, "it has no version"))?;
        if version > u64::from(VERSION) {
            let found = u32::try_from(version).unwrap_or(u32::MAX);
            return Err(IdentityError::Newer { path, found });
        }
        let file: IdentityFile = serde_json::from_slice(&bytes).map_err(|e| damaged(&path, e))?;
        let key = dir.join("keys/tls.key");
        let pem = read_text(files, &key)?;
        Ok(Self {
            tls_key_pem: Zeroizing::new(pem),
            wireguard: read_key(files, &dir.join("keys/wireguard.key"))?,
            sealing: read_key(files, &dir.join("keys/sealing.key"))?,
            dir: dir.to_owned(),
            file,
        })
    }

    /// Reads the identity in `dir`, or makes one from `random` bytes and a TLS key.
    ///
    /// Keys are written before the file that names them, so that an interrupted start leaves nothing half.
    ///
    /// # Errors
    /// When the folder cannot be written, or holds an identity that cannot be used.
    pub fn load_or_create(
        files: &dyn Files,
        dir: &Path,
        mut random: impl FnMut(&mut [u8]),
        tls_key_pem: impl FnOnce() -> Zeroizing<String>,
    ) -> Result<Self, IdentityError> {
        match Self::load(files, dir) {
            Err(IdentityError::Missing(_)) => {}
            other => return other,
        }
        let keys = dir.join("keys");
        files.private_dir(dir).map_err(io_error(dir))?;
        files.private_dir(&keys).map_err(io_error(&keys))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = keys.join(name);
            files.replace(&path, bytes, 0o600).map_err(io_error(&path))
        };
        for name in ["wireguard.key", "sealing.key"] {
            let mut key = Zeroizing::new([0u8; 32]);
            random(&mut key[..]);
            write(name, Zeroizing::new(STANDARD.encode(&key[..])).as_bytes())?;
        }
        write("tls.key", tls_key_pem().as_bytes())?;
        let mut ids = [[0u8; 16]; 2];
        ids.iter_mut().for_each(|id| random(id));
        let [uuid, request] = ids.map(|id| uuid::Builder::from_random_bytes(id).into_uuid());
        let file = IdentityFile { version: VERSION, uuid, request, membership: None };
        write_file(files, dir, &file)?;
        Self::load(files, dir)
    }

    /// Forgets a machine's identity, because it must not be used again; the next one gets keys of its own.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn forget(files: &dyn Files, dir: &Path) -> Result<(), IdentityError> {
        // The file that names the keys goes first: what is left of an interrupted call is replaced.
        let papers = ["identity.json", "node.crt", "ca.crt", "whereabouts.json"];
        let keys = ["keys/tls.key", "keys/wireguard.key", "keys/sealing.key"];
        for path in papers.into_iter().chain(keys).map(|name| dir.join(name)) {
            files.remove(&path).map_err(io_error(&path))?;
        }
        Ok(())
    }

    /// Records that the machine is a member, with the papers that prove it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn enter(
        &mut self,
        files: &dyn Files,
        cert_pem: &str,
        ca_pem: &str,
        m: Membership,
    ) -> Result<(), IdentityError> {
        self.put_papers(files, cert_pem, ca_pem)?;
        self.file.membership = Some(m);
        write_file(files, &self.dir, &self.file)
    }

    /// Writes certificate and authority without claiming membership yet.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_papers(
        &self,
        files: &dyn Files,
        cert_pem: &str,
        ca_pem: &str,
    ) -> Result<(), IdentityError> {
        for (name, text) in [("node.crt", cert_pem), ("ca.crt", ca_pem)] {
            let path = self.dir.join(name);
            files.replace(&path, text.as_bytes(), 0o600).map_err(io_error(&path))?;
        }
        Ok(())
    }

    /// Returns the certificate, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn cert_pem(&self, files: &dyn Files) -> Result<String, IdentityError> {
        read_text(files, &self.dir.join("node.crt"))
    }

    /// Returns the fleet's authority, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn ca_pem(&self, files: &dyn Files) -> Result<String, IdentityError> {
        read_text(files, &self.dir.join("ca.crt"))
    }

    /// Returns the membership.
    ///
    /// # Errors
    /// When the machine is no member yet.
    pub fn membership(&self) -> Result<&Membership, IdentityError> {
        self.file.membership.as_ref().ok_or(IdentityError::NotMember)
    }

    /// Returns the identity that the certificate names.
    pub fn uuid(&self) -> Uuid {
        self.file.uuid
    }

    /// Returns the id of the join request.
    pub fn request(&self) -> Uuid {
        self.file.request
    }

    /// Returns the TLS key, PEM.
    pub fn tls_key_pem(&self) -> &str {
        &self.tls_key_pem
    }

    /// Returns the WireGuard private key.
    pub fn wireguard(&self) -> &[u8; 32] {
        &self.wireguard
    }

    /// Returns the private key to which the fleet's key is boxed.
    pub fn sealing(&self) -> &[u8; 32] {
        &self.sealing
    }

    /// Returns the WireGuard public key.
    pub fn wireguard_public(&self) -> PublicKey {
        public(&self.wireguard)
    }

    /// Returns the public key to which the fleet's key is boxed.
    pub fn sealing_public(&self) -> PublicKey {
        public(&self.sealing)
    }
}

fn public(private: &[u8; 32]) -> PublicKey {
    let secret = x25519_dalek::StaticSecret::from(*private);
    PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

fn read_text(files: &dyn Files, path: &Path) -> Result<String, IdentityError> {
    let bytes = files.read(path).map_err(io_error(path))?;
    String::from_utf8(bytes).map_err(|e| damaged(path, e.utf8_error()))
}

fn read_key(files: &dyn Files, path: &Path) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let text = Zeroizing::new(read_text(files, path)?);
    let bytes = STANDARD.decode(text.trim()).map_err(|e| damaged(path, e))?;
    let key: [u8; 32] = bytes.try_into().map_err(|_| damaged(path, "it holds no 32 bytes"))?;
    Ok(Zeroizing::new(key))
}

fn write_file(files: &dyn Files, dir: &Path, file: &IdentityFile) -> Result<(), IdentityError> {
    let path = dir.join("identity.json");
    let bytes = serde_json::to_vec_pretty(file).map_err(|e| damaged(&path, e))?;
    files.replace(&path, &bytes, 0o600).map_err(io_error(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::linux::LinuxFiles;
    use std::fs;

    fn make(dir: &Path, fill: u8) -> Identity {
        Identity::load_or_create(
            &LinuxFiles,
            dir,
            |b| b.fill(fill),
            || Zeroizing::new("pem".into()),
        )
        .unwrap()
    }

    #[test]
    fn an_identity_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), 3);
        let second = make(dir.path(), 4);
        assert_eq!(first.uuid(), second.uuid());
        assert_eq!(first.wireguard_public(), second.wireguard_public());
        assert!(second.membership().is_err());
        assert!(!format!("{second:?}").contains("pem"));
    }

    #[test]
    fn a_forgotten_identity_makes_room_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), 3).uuid();
        Identity::forget(&LinuxFiles, dir.path()).unwrap();
        assert!(matches!(Identity::load(&LinuxFiles, dir.path()), Err(IdentityError::Missing(_))));
        assert_ne!(make(dir.path(), 4).uuid(), first);
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 3);
        fs::write(dir.path().join("identity.json"), r#"{"version":2}"#).unwrap();
        assert!(matches!(
            Identity::load(&LinuxFiles, dir.path()),
            Err(IdentityError::Newer { found: 2, .. })
        ));
        fs::write(dir.path().join("identity.json"), "{").unwrap();
        assert!(matches!(
            Identity::load(&LinuxFiles, dir.path()),
            Err(IdentityError::Damaged { .. })
        ));
    }
}
