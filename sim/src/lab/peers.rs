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

/// A program that is built from a Go module beside this crate.
struct GoProgram {
    name: &'static str,
    /// What it is made of: when one of these changes, it is built anew.
    files: &'static [&'static str],
}

const ETCD: GoProgram =
    GoProgram { name: "etcd", files: &["build.sh", "go.mod", "go.sum", "main.go"] };
const WIREGUARD_GO: GoProgram =
    GoProgram { name: "wireguard-go", files: &["build.sh", "go.mod", "go.sum"] };
/// The release of boringtun's program that is measured.
const BORINGTUN: &str = "0.7.1";

impl GoProgram {
    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name)
    }

    /// Where it is kept.
    fn kept(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for name in self.files {
            let file = self.source().join(name);
            hash.update(fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?);
        }
        let hash = hex::encode(hash.finalize());
        Ok(cache().join(self.name).join(&hash[..16]).join(self.name))
    }

    /// Builds it, unless that was done before.
    fn built(&self) -> Result<PathBuf> {
        let out = self.kept()?;
        if out.is_file() {
            return Ok(out);
        }
        say(format!("building {}: some minutes on two cores at most, then kept", self.name));
        if let Some(dir) = out.parent() {
            make_dir(dir)?;
        }
        let temporary = out.with_extension("new");
        run(Command::new(self.source().join("build.sh")).arg(&temporary))?;
        fs::rename(&temporary, &out).map_err(|e| format!("{}: {e}", out.display()))?;
        Ok(out)
    }
}

/// Runs a program whose words are for people.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| format!("{program}: {e}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{program} failed: {status}; its words are above"))
}

/// What has yet to be built and takes Go.
pub(super) fn needs_go(peer: Wanted) -> Result<bool> {
    let program = match peer {
        Wanted::Etcd => ETCD,
        Wanted::WireguardGo => WIREGUARD_GO,
    };
    Ok(!program.kept()?.is_file())
}

/// What can be built with Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Etcd,
    WireguardGo,
}

/// Finds wireguard-go, of the commit that its module names.
pub(crate) fn wireguard_go() -> Result<Peer> {
    let module = WIREGUARD_GO.source().join("go.mod");
    let text = fs::read_to_string(&module).map_err(|e| format!("{}: {e}", module.display()))?;
    let line = text.lines().find_map(|l| l.trim().strip_prefix("golang.zx2c4.com/wireguard "));
    let version = line.and_then(|l| l.split_whitespace().next()).unwrap_or("unknown");
    let next = "install Go 1.26 or newer";
    let binary = WIREGUARD_GO.built().map_err(|why| refusal("nothing was measured", why, next))?;
    Ok(Peer { version: format!("wireguard-go {version}, built from its Go module"), binary })
}

/// Finds boringtun's program, built by cargo as its users build it.
pub(crate) fn boringtun() -> Result<Peer> {
    let dir = cache().join("boringtun-cli").join(BORINGTUN);
    let binary = dir.join("bin/boringtun-cli");
    if !binary.is_file() {
        say("building boringtun-cli: two minutes on two cores, then kept");
        make_dir(&dir)?;
        let version = format!("={BORINGTUN}");
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "--quiet", "--locked", "--version", &version, "--root"]);
        run(cargo.arg(&dir).arg("boringtun-cli"))?;
    }
    Ok(Peer { version: format!("boringtun-cli {BORINGTUN} from crates.io"), binary })
}

/// Finds etcd: the pinned release, built if need be, or else the distribution's.
pub(crate) fn etcd() -> Result<Peer> {
    let (binary, origin) = match ETCD.built() {
        Ok(pinned) => (pinned, "built from its Go module"),
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
