//! Secrets stay where they belong: not in the store, not in a log, not readable by others.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use api::ticket::JoinTicket;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::common::{Lab, wait_for};

/// What must not be found, by where it was read.
type Needles = BTreeMap<String, Vec<Vec<u8>>>;

/// A secret in every form in which it may be written.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    assert!(secret.len() >= 16, "too short to be told from chance");
    vec![
        secret.to_vec(),
        STANDARD_NO_PAD.encode(secret).into_bytes(),
        URL_SAFE_NO_PAD.encode(secret).into_bytes(),
        hex::encode(secret).into_bytes(),
        hex::encode_upper(secret).into_bytes(),
        // As serde writes bytes into JSON.
        secret.iter().map(u8::to_string).collect::<Vec<_>>().join(",").into_bytes(),
    ]
}

/// The forms of a private key in PEM: its text, its DER, and the secret octets inside (RFC 5958, RFC 5915).
fn pem_forms(pem: &str) -> Vec<Vec<u8>> {
    let body: String = pem.lines().filter(|l| !l.contains("-----")).map(str::trim).collect();
    let der = STANDARD.decode(&body).expect("a PEM file");
    let mut found: Vec<Vec<u8>> =
        pem.lines().filter(|l| !l.contains("-----") && l.len() >= 32).map(Into::into).collect();
    found.extend(forms(&der));
    let inner = der.windows(34).filter(|w| w.starts_with(&[0x04, 0x20])).map(|w| &w[2..]);
    let inner: Vec<&[u8]> = inner.collect();
    assert!(!inner.is_empty(), "a key of 32 octets");
    found.extend(inner.into_iter().flat_map(forms));
    found
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads the secrets off a host's disk.
fn collect(lab: &Lab, host: &str, needles: &mut Needles) {
    let disk = lab.disk(host);
    let keys = disk.join("var/lib/skein/keys");
    for name in ["wireguard.key", "sealing.key"] {
        let key = STANDARD.decode(read(&keys.join(name)).trim()).expect("base64");
        needles.insert(format!("{host} {name}"), forms(&key));
    }
    needles.insert(format!("{host} tls.key"), pem_forms(&read(&keys.join("tls.key"))));
    let server = disk.join("var/lib/rancher/k3s/server");
    for name in ["token", "agent-token"].iter().filter(|n| server.join(n).exists()) {
        let token = read(&server.join(name));
        let secret = token.trim().rsplit(':').next().expect("a secret");
        needles.insert(format!("{host} {name}"), forms(secret.as_bytes()));
    }
    let authorities = files(&server.join("tls"));
    for path in authorities.iter().filter(|p| p.extension().is_some_and(|e| e == "key")) {
        needles.insert(format!("{host} {}", path.display()), pem_forms(&read(path)));
    }
    let kubeconfig = disk.join("etc/rancher/k3s/k3s.yaml");
    if kubeconfig.exists() {
        let text = read(&kubeconfig);
        let key = text.lines().find_map(|l| l.trim().strip_prefix("client-key-data: "));
        let key = key.expect("a client's key").trim().to_owned();
        let pem = String::from_utf8(STANDARD.decode(&key).expect("base64")).expect("PEM");
        let mut forms = pem_forms(&pem);
        forms.push(key.into_bytes());
        needles.insert(format!("{host} kubeconfig"), forms);
    }
}

/// Needles by their first octets, so that a text is read once however many there are.
struct Search<'a>(BTreeMap<[u8; PREFIX], Vec<(&'a str, &'a [u8])>>);

const PREFIX: usize = 8;

impl<'a> Search<'a> {
    fn new(needles: &'a Needles) -> Self {
        let mut index: BTreeMap<[u8; PREFIX], Vec<(&str, &[u8])>> = BTreeMap::new();
        for (what, forms) in needles {
            for needle in forms {
                let first = needle.first_chunk().expect("at least 16 octets");
                index.entry(*first).or_default().push((what, needle));
            }
        }
        Self(index)
    }

    /// Returns which needles are in `text`.
    fn found(&self, text: &[u8]) -> Vec<&'a str> {
        let mut found = Vec::new();
        for at in 0..text.len() {
            let Some(first) = text[at..].first_chunk::<PREFIX>() else { break };
            for (what, needle) in self.0.get(first).into_iter().flatten() {
                if text[at..].starts_with(needle) {
                    found.push(*what);
                }
            }
        }
        found
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What the store and the log of a host hold.
fn kept(lab: &Lab, host: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let disk = lab.disk(host);
    let mut paths = files(&disk.join("var/lib/skein/store"));
    assert!(!paths.is_empty(), "{host} has a store");
    paths.push(disk.join("var/log/skein.log"));
    paths.into_iter().map(|p| (p.clone(), std::fs::read(&p).unwrap_or_default())).collect()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn no_secret_is_in_a_store_or_a_log() {
    let Some(lab) = Lab::rehearsal("secrets", 3, 1) else { return };
    let mut needles = Needles::new();
    for host in lab.hosts() {
        collect(&lab, &host, &mut needles);
    }
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    let ticket = ticket.trim();
    let parsed: JoinTicket = ticket.parse().unwrap();
    let mut secret = forms(&parsed.secret);
    secret.push(ticket.as_bytes().to_vec());
    needles.insert("ticket".into(), secret);
    let context: Value =
        serde_json::from_str(&lab.run("n1", &["skein", "operator", "add", "ann"])).unwrap();
    needles.insert("operator's key".into(), pem_forms(context["key"].as_str().unwrap()));
    lab.run("n4", &["skein", "kubeconfig", "lab"]);
    let read_of = |what: &str| needles.keys().filter(|k| k.contains(what)).count();
    assert!(read_of(" token") == 3 && read_of("kubeconfig") == 3 && read_of(".key") > 12);

    // What is no secret must be found, or the search would prove nothing.
    let node = lab.ask("n1", &["node", "show", "n1"]).unwrap();
    let public = node["wireguard_key"].as_str().expect("a public key");
    let public = forms(&STANDARD.decode(public).expect("base64"));
    let public = Needles::from([("n1's public key".to_owned(), public)]);
    let (secret, public) = (Search::new(&needles), Search::new(&public));
    for host in lab.hosts() {
        wait_for(&format!("{host} keeps what is public"), 10, || {
            let kept = kept(&lab, &host);
            let found = kept.iter().any(|(_, bytes)| !public.found(bytes).is_empty());
            if found { Ok(()) } else { Err("n1's public key is not in its store".into()) }
        });
        for (path, bytes) in kept(&lab, &host) {
            let found = secret.found(&bytes);
            assert!(found.is_empty(), "{found:?} in {}", path.display());
        }
    }
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn keys_are_for_root_alone() {
    let Some(lab) = Lab::rehearsal("modes", 1, 1) else { return };
    for host in lab.hosts() {
        let state = lab.disk(&host).join("var/lib/skein");
        let keys = files(&state.join("keys"));
        assert_eq!(keys.len(), 3, "{keys:?}");
        for path in &keys {
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
        assert_eq!(mode(&state.join("keys")), 0o700);
        let socket = lab.run(&host, &["stat", "-c", "%a", "/run/skein", "/run/skein/skein.sock"]);
        assert_eq!(socket.split_whitespace().collect::<Vec<_>>(), ["700", "600"]);
        // What K3s reads at its start names tokens.
        let rancher = files(&lab.disk(&host).join("etc/rancher"));
        for path in rancher.iter().chain(&files(&state.join("k3s"))) {
            let open = mode(path) & 0o077 != 0;
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let secret =
                ["token", "PRIVATE KEY", "client-key-data"].iter().any(|w| text.contains(w));
            assert!(!(open && secret), "{} is readable by others", path.display());
        }
    }
    lab.down();
}

/// A folder that was there before, as packages and administrators make them, is no less private.
#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn the_state_folder_is_for_root_alone() {
    let Some(lab) = Lab::up("folder", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    for host in lab.hosts() {
        let state = lab.disk(&host).join("var/lib/skein");
        assert_eq!(mode(&state), 0o700, "{}", state.display());
    }
    lab.down();
}
