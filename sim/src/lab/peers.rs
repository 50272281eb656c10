//! What Skein is measured against, built from its authors' sources and kept. Shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::runtime::{cache, on_path};
use super::store::make_dir;
use super::{Result, refusal, say};

/// A peer on this machine.
pub(crate) struct Peer {
    /// Its program.
    pub(crate) binary: PathBuf,
    /// Its version, and where it comes from.
    pub(crate) version: String,
}

/// The module that builds etcd, beside this crate.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("etcd")
}

fn built() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for name in ["build.sh", "go.mod", "go.sum", "main.go"] {
        let file = source().join(name);
        hash.update(fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?);
    }
    let hash = hex::encode(hash.finalize());
    Ok(cache().join("etcd").join(&hash[..16]).join("etcd"))
}

/// Whether etcd has yet to be built, which takes Go.
pub(super) fn needs_go() -> Result<bool> {
    Ok(!built()?.is_file())
}

fn build(out: &Path) -> Result<()> {
    say("building etcd: some minutes on two cores, then kept");
    if let Some(dir) = out.parent() {
        make_dir(dir)?;
    }
    let temporary = out.with_extension("new");
    let build = source().join("build.sh");
    let status = Command::new(&build).arg(&temporary).status();
    let status = status.map_err(|e| format!("{}: {e}", build.display()))?;
    if !status.success() {
        return Err(format!("{} failed: {status}; its words are above", build.display()));
    }
    fs::rename(&temporary, out).map_err(|e| format!("{}: {e}", out.display()))
}

/// Finds etcd: the pinned release, built if need be, or else the distribution's.
pub(crate) fn etcd() -> Result<Peer> {
    let pinned = built()?;
    let made = if pinned.is_file() { Ok(()) } else { build(&pinned) };
    let (binary, origin) = match made {
        Ok(()) => (pinned, "built from its Go module"),
        Err(why) => {
            let installed = on_path("etcd").ok_or_else(|| {
                let next =
                    "install Go 1.26 or newer, or the distribution's: apt-get install etcd-server";
                refusal("nothing was measured", format!("there is no etcd here: {why}"), next)
            })?;
            say(format!("etcd was not built ({why}); taking the one on PATH"));
            (installed, "the one on PATH")
        }
    };
    let words = super::sh(&binary.display().to_string(), &["--version"])?;
    let version = words.lines().next().and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown");
    Ok(Peer { version: format!("etcd {version}, {origin}"), binary })
}
