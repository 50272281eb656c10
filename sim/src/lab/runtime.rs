//! What a lab's hosts run as K3s, and what this kind of host needs beside it. Shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::store::{HostRecord, Lab, make_dir, write};
use super::{Result, refusal, say};

/// Where built things are kept between runs.
pub(super) fn cache() -> PathBuf {
    let base = std::env::var_os("SKEIN_CACHE").map(PathBuf::from);
    base.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        home.join(".cache/skein")
    })
}

/// The source of the lab's Kubernetes, beside this crate.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("labk3s")
}

fn source_hash() -> Result<String> {
    let dir = source();
    let mut files: Vec<PathBuf> = Vec::new();
    let listed = [dir.clone(), dir.join("pause")]
        .map(fs::read_dir)
        .into_iter()
        .flatten()
        .flatten()
        .flatten();
    for entry in listed {
        let path = entry.path();
        let named =
            path.extension().is_some_and(|x| x == "go" || x == "mod" || x == "sum" || x == "sh");
        if named {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?);
    }
    Ok(hex::encode(hash.finalize())[..16].to_owned())
}

fn built() -> Result<PathBuf> {
    Ok(cache().join("labk3s").join(source_hash()?).join("k3s"))
}

pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file())
}

/// What was chosen: its name for people, and the binary.
pub(super) type Choice = (String, PathBuf);

/// What a wish for K3s leads to on this machine.
enum Found {
    Rehearsal,
    Build,
    Given(PathBuf),
}

fn find(wanted: &str) -> Result<Found> {
    Ok(match wanted {
        "rehearsal" => Found::Rehearsal,
        "build" => Found::Build,
        "auto" => match on_path("k3s") {
            Some(path) => Found::Given(path),
            None if built()?.is_file() => Found::Build,
            None => Found::Rehearsal,
        },
        path => Found::Given(fs::canonicalize(path).map_err(|e| {
            refusal(
                "the lab was not made",
                format!("--k3s {path}: {e}"),
                "--k3s takes auto, rehearsal, build or the path of a K3s binary",
            )
        })?),
    })
}

/// What a wish other than auto is called in a lab's records.
pub(super) fn name(wanted: &str) -> String {
    match find(wanted) {
        Ok(Found::Given(path)) => path.display().to_string(),
        _ => wanted.to_owned(),
    }
}

/// Chooses what hosts run as K3s, building it if asked to.
pub(super) fn choose(wanted: &str) -> Result<Choice> {
    let auto = wanted == "auto";
    match find(wanted)? {
        Found::Rehearsal => {
            if auto {
                say(
                    "K3s: the rehearsal, a stand-in without Kubernetes; the lab's real Kubernetes comes with --k3s build (about ten minutes, once)",
                );
            }
            rehearsal()
        }
        Found::Build => {
            if auto {
                say("K3s: the lab's Kubernetes, built earlier (a stand-in made of real parts)");
            }
            build()
        }
        Found::Given(path) => {
            if auto {
                say(format!("K3s: {} (found on PATH)", path.display()));
            }
            let version = version(&path)?;
            if !version.contains("k3s version") {
                return Err(refusal(
                    "the lab was not made",
                    format!("{} does not call itself K3s: {version:?}", path.display()),
                    "--k3s takes auto, rehearsal, build or the path of a K3s binary",
                ));
            }
            Ok((path.display().to_string(), path))
        }
    }
}

fn version(binary: &Path) -> Result<String> {
    super::sh(&binary.display().to_string(), &["--version"])
}

/// Whether a binary is the lab's Kubernetes, which names itself in its version (labk3s/build.sh). K3s itself brings
/// along what that takes from the distribution.
fn is_labk3s(binary: &Path) -> bool {
    version(binary).is_ok_and(|v| v.contains("+lab"))
}

/// Returns what must be installed for a wish: "kubernetes" for what runs pods, "go" for what compiles it.
pub(super) fn needs(wanted: &str) -> Result<Vec<&'static str>> {
    Ok(match find(wanted)? {
        Found::Build if !built()?.is_file() => vec!["kubernetes", "go"],
        Found::Build => vec!["kubernetes"],
        Found::Given(path) if is_labk3s(&path) => vec!["kubernetes"],
        Found::Given(_) | Found::Rehearsal => Vec::new(),
    })
}

/// The rehearsal is this very program under K3s' name.
fn rehearsal() -> Result<Choice> {
    let exe = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    Ok(("rehearsal".into(), as_program(&exe, "rehearsal", "k3s")?))
}

/// Gives this program another name, by which it is another program; returns its path, in a folder beside it.
pub(super) fn as_program(exe: &Path, folder: &str, name: &str) -> Result<PathBuf> {
    let dir = exe.parent().unwrap_or(Path::new("/")).join(folder);
    make_dir(&dir)?;
    let link = dir.join(name);
    let fresh = fs::read_link(&link).ok().as_deref() == Some(exe);
    if !fresh {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(exe, &link).map_err(|e| format!("{}: {e}", link.display()))?;
    }
    Ok(link)
}

fn build() -> Result<Choice> {
    let out = built()?;
    if !out.is_file() {
        say("building the lab's Kubernetes: about ten minutes on two cores, then kept");
        if let Some(dir) = out.parent() {
            make_dir(dir)?;
        }
        let temporary = out.with_extension("new");
        let status = Command::new(source().join("build.sh"))
            .arg(&temporary)
            .status()
            .map_err(|e| format!("build.sh: {e}"))?;
        if !status.success() {
            return Err("the lab's Kubernetes was not built; its words are above".into());
        }
        fs::rename(&temporary, &out).map_err(|e| format!("{}: {e}", out.display()))?;
    }
    Ok(("build".into(), out))
}

/// Returns the packages of programs that a choice needs from the distribution and that are missing.
pub(super) fn missing(name: &str, binary: &Path) -> Vec<&'static str> {
    if name == "rehearsal" || !is_labk3s(binary) {
        return Vec::new();
    }
    let needs = [
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("iptables", "iptables"),
        ("conntrack", "conntrack"),
        ("ebtables", "ebtables"),
        ("ipset", "ipset"),
        ("socat", "socat"),
    ];
    let absent = needs.iter().filter(|(program, _)| {
        on_path(program).is_none() && !Path::new("/usr/sbin").join(program).exists()
    });
    let plugins =
        (!Path::new("/usr/lib/cni/bridge").exists()).then_some("containernetworking-plugins");
    absent.map(|(_, package)| *package).chain(plugins).collect()
}

/// What K3s itself would have containerd do, and one line more: without it no sandbox starts where oom scores cannot be
/// lowered. Written out, as releases before September 2023 know no template to extend; in the second version of containerd's
/// settings, which containerd reads from 1.3 to 2.x. Only fields that K3s has had since 1.21 are named.
const CONTAINERD: &str = r#"version = 2

[plugins."io.containerd.internal.v1.opt"]
  path = "{{ .NodeConfig.Containerd.Opt }}"

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  restrict_oom_score_adj = true
{{- if .NodeConfig.AgentConfig.PauseImage }}
  sandbox_image = "{{ .NodeConfig.AgentConfig.PauseImage }}"
{{- end }}

{{ if .NodeConfig.AgentConfig.Snapshotter -}}
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{{ .NodeConfig.AgentConfig.Snapshotter }}"
  disable_snapshot_annotations = true
{{- end }}

{{ if .NodeConfig.AgentConfig.CNIBinDir -}}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{{ .NodeConfig.AgentConfig.CNIBinDir }}"
  conf_dir = "{{ .NodeConfig.AgentConfig.CNIConfDir }}"
{{- end }}

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#;

/// Packaged parts that need images from the internet and that nothing here uses. K3s passes over a manifest beside which lies
/// a file of its name and `.skip`; `disable` in its configuration would keep workers of old releases from starting.
const SKIPPED: [&str; 3] =
    ["traefik.yaml", "metrics-apiservice.yaml", "metrics-server-deployment.yaml"];

/// Lays what Skein and K3s read on a host's disk.
pub(super) fn lay(lab: &Lab, h: &HostRecord, disk: &Path) -> Result<()> {
    // Some machines with one packet thread and some with several, whatever this one's cores.
    let threads = 1 + h.index % 2;
    let binary = lab.k3s_binary.display();
    let config = format!(
        "packet_threads = {threads}\n\n[k3s]\nbinary = \"{binary}\"\nmanager = \"process\"\n"
    );
    write(&disk.join("etc/skein/skein.toml"), config)?;
    if lab.k3s == "rehearsal" {
        return Ok(());
    }
    let agent = disk.join("var/lib/rancher/k3s/agent");
    if !may_lower_oom_scores() {
        let etc = agent.join("etc/containerd");
        make_dir(&etc)?;
        write(&etc.join("config.toml.tmpl"), CONTAINERD)?;
        // It would win over the other one, and earlier labs left a broken one.
        let _ = fs::remove_file(etc.join("config-v3.toml.tmpl"));
    }
    let manifests = disk.join("var/lib/rancher/k3s/server/manifests");
    make_dir(&manifests)?;
    for name in SKIPPED {
        write(&manifests.join(format!("{name}.skip")), "")?;
    }
    if let Some(images) = &lab.images {
        let to = agent.join("images");
        make_dir(&to)?;
        for entry in fs::read_dir(images)
            .map_err(|e| format!("--images {}: {e}", images.display()))?
            .flatten()
        {
            if entry.path().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name()))
                    .map_err(|e| format!("{}: {e}", entry.path().display()))?;
            }
        }
    }
    Ok(())
}

/// Whether this machine has CAP_SYS_RESOURCE (24), as capabilities(7) numbers it.
fn may_lower_oom_scores() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << 24) != 0)
}
