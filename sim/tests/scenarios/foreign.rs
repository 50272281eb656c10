//! A client that knows nothing of this project: grpcurl, by reflection.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{Lab, skip};

const VERSION: &str = "v1.9.3";
const SOCKET: &str = "unix:///run/skein/skein.sock";

/// Where built things are kept between runs, as the lab does.
fn cache() -> PathBuf {
    let named = std::env::var_os("SKEIN_CACHE").map(PathBuf::from);
    named.unwrap_or_else(|| {
        Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/skein")
    })
}

/// Finds grpcurl, and builds it the first time. None, said aloud, where it cannot be had.
fn grpcurl() -> Option<String> {
    let folder = cache().join("grpcurl").join(VERSION);
    let program = folder.join("grpcurl");
    if program.is_file() {
        return Some(program.display().to_string());
    }
    let own = cache().join("go/bin/go");
    let go = if own.is_file() { own } else { PathBuf::from("go") };
    let module = format!("github.com/fullstorydev/grpcurl/cmd/grpcurl@{VERSION}");
    let built = Command::new(go).args(["install", &module]).env("GOBIN", &folder).output();
    let why = match built {
        Ok(out) if out.status.success() => return Some(program.display().to_string()),
        Ok(out) => String::from_utf8_lossy(&out.stderr).into_owned(),
        Err(e) => format!("Go: {e}"),
    };
    skip(&format!("grpcurl was not built: {why}"));
    None
}

fn words(out: &Output) -> String {
    assert!(out.status.success(), "{out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn json(out: &Output) -> Value {
    serde_json::from_str(&words(out)).expect("grpcurl prints JSON")
}

const SERVICES: [&str; 7] = ["Fleet", "Nodes", "Networks", "Clusters", "Vips", "Join", "Peer"];

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_foreign_client_finds_its_way_by_reflection_on_the_socket() {
    let Some(grpcurl) = grpcurl() else { return };
    let Some(lab) = Lab::rehearsal("grpcurl", 1, 1) else { return };
    let call = |rest: &[&str]| {
        let full = [&[grpcurl.as_str(), "-plaintext"], rest].concat();
        lab.exec("n2", &full)
    };
    let listed = words(&call(&[SOCKET, "list"]));
    for service in SERVICES {
        assert!(listed.lines().any(|l| l == format!("skein.v1.{service}")), "{service}: {listed}");
    }
    assert!(listed.lines().any(|l| l == "grpc.health.v1.Health"), "{listed}");
    let described = words(&call(&[SOCKET, "describe", "skein.v1.Fleet"]));
    assert!(described.contains("rpc GetStatus"), "{described}");
    let message = words(&call(&[SOCKET, "describe", "skein.v1.Status"]));
    assert!(message.contains("repeated .skein.v1.NodeStatus nodes"), "{message}");

    let status = json(&call(&[SOCKET, "skein.v1.Fleet/GetStatus"]));
    assert_eq!((status["leader"].as_str(), status["servedBy"].as_str()), (Some("n1"), Some("n2")));
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(2), "{status}");
    let health = json(&call(&[SOCKET, "grpc.health.v1.Health/Check"]));
    assert_eq!(health["status"], "SERVING");

    let request = r#"{"name": "by-grpc"}"#;
    words(&call(&["-d", request, SOCKET, "skein.v1.Networks/Create"]));
    lab.run("n1", &["skein", "net", "show", "by-grpc"]);
    let again = call(&["-d", request, SOCKET, "skein.v1.Networks/Create"]);
    let refusal = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && refusal.contains("AlreadyExists"), "{refusal}");
    let peer = call(&[SOCKET, "skein.v1.Peer/Call"]);
    let refusal = String::from_utf8_lossy(&peer.stderr).into_owned();
    assert!(!peer.status.success() && refusal.contains("PermissionDenied"), "{refusal}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_foreign_client_needs_a_certificate_over_the_network() {
    let Some(grpcurl) = grpcurl() else { return };
    let Some(lab) = Lab::up("grpctls", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let context: Value =
        serde_json::from_str(&lab.run("n1", &["skein", "operator", "add", "ann"])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |key: &str| {
        let path = folder.path().join(key);
        std::fs::write(&path, context[key].as_str().unwrap()).unwrap();
        path.display().to_string()
    };
    let (ca, cert, key) = (file("authority"), file("certificate"), file("key"));
    let name = format!("{}.fleet.skein", context["fleet"].as_str().unwrap());
    let address = format!("{}:7443", lab.host("n1")["underlay"].as_str().unwrap());
    let call = |papers: &[&str], rest: &[&str]| {
        let options = [grpcurl.as_str(), "-cacert", &ca, "-authority", &name];
        lab.exec("n2", &[&options[..], papers, &[&address], rest].concat())
    };
    let papers = ["-cert", &cert, "-key", &key];
    let listed = words(&call(&papers, &["list"]));
    assert!(listed.contains("skein.v1.Fleet"), "{listed}");
    let status = json(&call(&papers, &["skein.v1.Fleet/GetStatus"]));
    assert_eq!(status["servedBy"], "n1", "{status}");

    let strange = call(&[], &["list"]);
    let refusal = String::from_utf8_lossy(&strange.stderr).into_owned();
    assert!(!strange.status.success() && refusal.contains("client certificate"), "{refusal}");
    let strange = call(&[], &["skein.v1.Fleet/GetStatus"]);
    assert!(!strange.status.success(), "{strange:?}");
    lab.down();
}
