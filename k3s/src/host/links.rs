//! `k3s`, `kubectl` and the like under their names, for people on this host. Shell.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::HostError;
use super::command::must;
use super::files::{self, at};

/// Where links are made.
const FOLDER: &str = "/usr/local/bin";
/// Where else a program of the same name would count, whatever this daemon's own path is.
const USUAL: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The names under which K3s is another program.
const NAMES: [&str; 4] = ["k3s", "kubectl", "crictl", "ctr"];

/// Links the names that `binary` answers to, as far as nobody else has them.
pub(super) async fn lay(binaries: &Path, binary: &Path) -> Result<(), HostError> {
    let help = must(&binary.display().to_string(), &["--help"]).await?;
    let mut path: Vec<PathBuf> = USUAL.iter().map(PathBuf::from).collect();
    path.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    place(Path::new(FOLDER), &path, binaries, binary, &offered(&help))
}

/// Removes the links that lead to `binaries`.
pub(super) fn remove(binaries: &Path) -> Result<(), HostError> {
    remove_from(Path::new(FOLDER), binaries)
}

fn remove_from(folder: &Path, binaries: &Path) -> Result<(), HostError> {
    let links = NAMES.iter().map(|name| folder.join(name));
    links.filter(|link| ours(link, binaries)).try_for_each(|link| files::remove(&link))
}

/// The names among the commands that a `--help` text lists.
fn offered(help: &str) -> Vec<&'static str> {
    let listed = |name: &str| help.lines().any(|l| l.split_whitespace().next() == Some(name));
    NAMES.into_iter().filter(|name| *name == "k3s" || listed(name)).collect()
}

fn ours(link: &Path, binaries: &Path) -> bool {
    std::fs::read_link(link).is_ok_and(|target| target.starts_with(binaries))
}

fn place(
    folder: &Path,
    path: &[PathBuf],
    binaries: &Path,
    binary: &Path,
    names: &[&str],
) -> Result<(), HostError> {
    let all = || path.iter().map(PathBuf::as_path).chain([folder]);
    let theirs = |name: &str| {
        let mut found = all().map(|dir| dir.join(name)).filter(|p| p.symlink_metadata().is_ok());
        found.any(|program| !ours(&program, binaries))
    };
    // Where there is a K3s of somebody else, its kubectl is meant.
    if theirs("k3s") {
        return Ok(());
    }
    for name in names.iter().filter(|name| !theirs(name)) {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == binary) {
            continue;
        }
        files::remove(&link)?;
        symlink(binary, &link).map_err(at("make", &link))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_of_the_release_are_linked() {
        let help = "COMMANDS:\n   server   Run it\n   kubectl  Run kubectl\n   ctr      Run ctr\n";
        assert_eq!(offered(help), ["k3s", "kubectl", "ctr"]);
        assert_eq!(offered("agent\n"), ["k3s"]);
    }

    #[test]
    fn names_of_others_are_left_and_ours_follow_the_binary() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        let (folder, other, binaries) = (of("local"), of("usr"), of("skein/bin"));
        for made in [&folder, &other, &binaries] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::fs::write(other.join("crictl"), "theirs").unwrap();
        std::fs::write(folder.join("ctr"), "theirs").unwrap();
        let (old, new) = (binaries.join("a/k3s"), binaries.join("b/k3s"));
        let put =
            |binary: &Path| place(&folder, std::slice::from_ref(&other), &binaries, binary, &NAMES);
        put(&old).unwrap();
        put(&new).unwrap();
        put(&new).unwrap();
        let target = |name: &str| std::fs::read_link(folder.join(name)).ok();
        assert_eq!((target("k3s"), target("kubectl")), (Some(new.clone()), Some(new.clone())));
        assert!(!folder.join("crictl").exists());
        remove_from(&folder, &binaries).unwrap();
        assert!(target("k3s").is_none() && folder.join("ctr").exists());
        std::fs::write(other.join("k3s"), "theirs").unwrap();
        put(&new).unwrap();
        assert!(target("kubectl").is_none());
    }
}
