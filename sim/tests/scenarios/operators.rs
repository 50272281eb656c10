//! Operators with a context file, on a machine that is no member.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::common::{Lab, refused, texts, wait_for};
use crate::device::Device;

/// A machine on the lab's wire without a daemon, with a context file.
struct Workstation {
    machine: Device,
    skein: PathBuf,
    folder: tempfile::TempDir,
}

impl Workstation {
    fn plug(lab: &Lab) -> Self {
        let underlay = lab.host("n1")["underlay"].as_str().unwrap().to_owned();
        let net = underlay.rsplit_once('.').unwrap().0.to_owned();
        let machine = Device::plug(&lab.name, &format!("{net}.250/24"));
        let skein = lab.disk("n1").with_file_name("bin").join("skein");
        Self { machine, skein, folder: tempfile::tempdir().unwrap() }
    }

    /// Keeps a context file; returns its path.
    fn keep(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn skein(&self, context: &Path, command: &[&str]) -> Output {
        let (skein, context) = (self.skein.display().to_string(), context.display().to_string());
        let socket = self.folder.path().join("nowhere.sock").display().to_string();
        let options = ["--context", &context, "--socket", &socket];
        self.machine.inside(&[&[skein.as_str()], &options[..], command].concat())
    }

    /// Asks for the status; returns who served it.
    fn served_by(&self, context: &Path) -> Result<String, String> {
        let out = self.skein(context, &["status", "-o", "json"]);
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        let status: Value = serde_json::from_slice(&out.stdout).map_err(|_| words)?;
        Ok(status["served_by"].as_str().unwrap_or_default().to_owned())
    }
}

fn three(name: &str) -> Option<Lab> {
    Lab::up(name, 3, 0, &["--k3s", "rehearsal", "--no-cluster"])
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_context_goes_on_when_its_first_node_is_dead() {
    let Some(lab) = three("context") else { return };
    let text = lab.run("n2", &["skein", "operator", "add", "ann"]);
    let context: Value = serde_json::from_str(&text).unwrap();
    let endpoints = texts(&context["endpoints"]);
    let of_host = |host: &str| format!("{}:7443", lab.host(host)["underlay"].as_str().unwrap());
    for host in lab.hosts() {
        assert!(endpoints.contains(&of_host(&host)), "{host} is not among {endpoints:?}");
    }
    let station = Workstation::plug(&lab);
    let file = station.keep("ann.json", &text);
    // The lab's IPv6 wire does not reach the workstation: who answers first is the first IPv4 one.
    let first = station.served_by(&file).expect("a workstation is answered");
    lab.must(&["kill", &first]);
    let next = wait_for("another node answers", 30, || station.served_by(&file));
    assert_ne!(next, first);
    wait_for("an operator's write is carried out", 20, || {
        let out = station.skein(&file, &["net", "create", "from-afar"]);
        let ok = out.status.success()
            || lab.exec(&next, &["skein", "net", "show", "from-afar"]).status.success();
        if ok { Ok(()) } else { Err(format!("{out:?}")) }
    });
    lab.run(&next, &["skein", "net", "show", "from-afar"]);

    for host in lab.hosts().iter().filter(|h| **h != first) {
        lab.must(&["kill", host]);
    }
    let out = station.skein(&file, &["status"]);
    let why = refused(&out, 1);
    assert!(endpoints.iter().all(|e| why.contains(e.as_str())), "it names whom it tried: {why}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_removed_operator_is_refused_everywhere() {
    let Some(lab) = three("voided") else { return };
    let station = Workstation::plug(&lab);
    let add = || lab.run("n1", &["skein", "operator", "add", "ann"]);
    let old = station.keep("old.json", &add());
    station.served_by(&old).unwrap();
    let new = station.keep("new.json", &add());
    let refusal = |file: &Path| {
        wait_for("the operator is refused", 10, || {
            let out = station.skein(file, &["status"]);
            if out.status.success() { Err("it is served".into()) } else { Ok(refused(&out, 1)) }
        })
    };
    let why = refusal(&old);
    assert!(why.contains("newer certificate"), "{why}");
    station.served_by(&new).unwrap();
    let listed = lab.ask("n2", &["operator", "ls"]).unwrap();
    assert_eq!(listed["operators"].as_array().map(Vec::len), Some(1), "{listed}");

    lab.run("n2", &["skein", "operator", "rm", "ann"]);
    let why = refusal(&new);
    assert!(why.contains("ann was removed"), "{why}");
    for host in lab.hosts() {
        let endpoint = format!("{}:7443", lab.host(&host)["underlay"].as_str().unwrap());
        let text = std::fs::read_to_string(&new).unwrap();
        let mut context: Value = serde_json::from_str(&text).unwrap();
        context["endpoints"] = [endpoint].as_slice().into();
        let why = refusal(&station.keep("one.json", &context.to_string()));
        assert!(why.contains("ann was removed"), "{host}: {why}");
    }
    refused(&lab.exec("n1", &["skein", "operator", "rm", "ann"]), 3);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_context_that_cannot_be_used_is_told_in_three_lines() {
    let Some(lab) = three("badctx") else { return };
    let text = lab.run("n1", &["skein", "operator", "add", "ann"]);
    let station = Workstation::plug(&lab);
    refused(&station.skein(Path::new("/nonexistent"), &["status"]), 1);
    refused(&station.skein(&station.keep("cut.json", &text[..text.len() / 2]), &["status"]), 1);
    let mut context: Value = serde_json::from_str(&text).unwrap();
    context["fleet"] = "00000000-0000-4000-8000-000000000000".into();
    refused(&station.skein(&station.keep("other.json", &context.to_string()), &["status"]), 1);
    lab.down();
}
