//! The Kubernetes client against a small TLS server in this process, a stand-in for the API.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may talk"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k3s::{Kube, KubeError, Secret, make_cluster_ca};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

type Answers = BTreeMap<String, Vec<(u16, Value)>>;
type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// Certificates signed by the same authority that K3s would be given: chain, key.
fn leaf(ca: &k3s::CaBundle, authority: &str, name: &str, san: Option<&str>) -> (String, String) {
    let found = ca.authorities.iter().find(|one| one.name == authority).unwrap();
    let issuer = Issuer::from_ca_cert_pem(
        &found.chain,
        KeyPair::from_pem(&pkcs8(found.key.expose())).unwrap(),
    )
    .unwrap();
    let mut params =
        CertificateParams::new(san.map(str::to_owned).into_iter().collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    (format!("{certificate}{}", found.chain), key.serialize_pem())
}

/// SEC 1 in the wrapping that rcgen reads.
fn pkcs8(sec1: &str) -> String {
    let PrivateKeyDer::Sec1(inner) = PrivateKeyDer::from_pem_slice(sec1.as_bytes()).unwrap() else {
        panic!("not SEC 1")
    };
    let inner = inner.secret_sec1_der();
    let head = [
        0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
        0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04,
    ];
    let mut body: Vec<u8> = head.to_vec();
    body.push(u8::try_from(inner.len()).unwrap());
    body.extend_from_slice(inner);
    let mut der = vec![0x30, 0x81, u8::try_from(body.len()).unwrap()];
    der.extend(body);
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
}

async fn stand_in(answers: Answers) -> (Kube, Seen) {
    let ca = make_cluster_ca("lab", 1_795_000_000).unwrap();
    let (server, server_key) = leaf(&ca, "server-ca", "kube-apiserver", Some("127.0.0.1"));
    let (client, client_key) = leaf(&ca, "client-ca", "system:admin", None);
    let of = |name: &str| ca.authorities.iter().find(|one| one.name == name).unwrap().chain.clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(
        CertificateDer::pem_slice_iter(of("client-ca").as_bytes()).map(Result::unwrap),
    );
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let chain = CertificateDer::pem_slice_iter(server.as_bytes()).map(Result::unwrap).collect();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(server_key.as_bytes()).unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Seen = Arc::default();
    let serving = Arc::clone(&seen);
    #[expect(
        clippy::disallowed_methods,
        reason = "a server of the test, which ends with its runtime"
    )]
    tokio::spawn(async move {
        let mut answers = answers;
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(socket).await {
                serve(&mut stream, &mut answers, &serving).await;
            }
        }
    });
    let inline = |text: &str| STANDARD.encode(text);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: default\ncontexts:\n- name: default\n  context: {{cluster: default, user: default}}\nclusters:\n- name: default\n  cluster: {{server: 'https://192.0.2.1:1', certificate-authority-data: {}}}\nusers:\n- name: default\n  user: {{client-certificate-data: {}, client-key-data: {}}}\n",
        inline(&of("server-ca")),
        inline(&client),
        inline(&client_key)
    );
    (Kube::new(&Secret::new(kubeconfig), Some(&format!("https://127.0.0.1:{port}"))).unwrap(), seen)
}

async fn serve(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    answers: &mut Answers,
    seen: &Seen,
) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut part = [0; 4096];
        let Ok(count) = stream.read(&mut part).await else {
            return;
        };
        if count == 0 {
            return;
        }
        bytes.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map(|n| n.parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            break (head.to_owned(), body.to_owned());
        }
    };
    let what = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    seen.lock().unwrap().push((what.clone(), serde_json::from_str(&body).unwrap_or(Value::Null)));
    let known = answers.get_mut(&what).filter(|list| !list.is_empty());
    let (status, answer) = known.map_or((404, json!({"message": "not found"})), |list| {
        if list.len() > 1 { list.remove(0) } else { list[0].clone() }
    });
    let text = answer.to_string();
    let reply = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    let _ = stream.write_all(reply.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn answers(list: &[(&str, u16, Value)]) -> Answers {
    let mut answers = Answers::new();
    for (what, status, value) in list {
        answers.entry((*what).to_owned()).or_default().push((*status, value.clone()));
    }
    answers
}

fn node(cordoned: bool, ours: bool) -> Value {
    json!({
        "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/master": "true"}, "annotations": if ours { json!({"skein.dev/cordoned": "true"}) } else { json!({}) }},
        "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24", "fd42::/64"], "unschedulable": cordoned},
        "status": {"conditions": [{"type": "Ready", "status": "True", "message": "kubelet is posting ready status"}], "addresses": [{"type": "InternalIP", "address": "10.91.0.1"}, {"type": "Hostname", "address": "n1"}], "nodeInfo": {"kubeletVersion": "v1.33.5+k3s1"}},
    })
}

#[tokio::test]
async fn nodes_are_read() {
    let (kube, _) = stand_in(answers(&[(
        "GET /api/v1/nodes",
        200,
        json!({"items": [node(true, true), {"metadata": {"name": "bare"}}]}),
    )]))
    .await;
    let nodes = kube.nodes().await.unwrap();
    assert!(nodes[0].ready && nodes[0].server && nodes[0].cordoned_by_us);
    assert_eq!(nodes[0].pod_cidrs, ["10.42.0.0/24".parse().unwrap(), "fd42::/64".parse().unwrap()]);
    assert_eq!(nodes[0].addresses, ["10.91.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(!nodes[1].ready && nodes[1].pod_cidrs.is_empty());
}

#[tokio::test]
async fn only_our_own_cordon_is_undone() {
    let list = [
        ("GET /api/v1/nodes/n1", 200, node(true, false)),
        ("PATCH /api/v1/nodes/n1", 200, json!({})),
    ];
    let (kube, seen) = stand_in(answers(&list)).await;
    kube.cordon("n1").await.unwrap();
    assert!(!kube.uncordon("n1").await.unwrap());
    assert!(
        seen.lock().unwrap().iter().all(|(what, _)| !what.starts_with("PATCH")),
        "somebody else's cordon is not touched"
    );

    let list = [
        ("GET /api/v1/nodes/n1", 200, node(false, false)),
        ("GET /api/v1/nodes/n1", 200, node(true, true)),
        ("PATCH /api/v1/nodes/n1", 200, json!({})),
    ];
    let (kube, seen) = stand_in(answers(&list)).await;
    kube.cordon("n1").await.unwrap();
    assert!(kube.uncordon("n1").await.unwrap());
    let patches: Vec<Value> = seen
        .lock()
        .unwrap()
        .iter()
        .filter(|(what, _)| what.starts_with("PATCH"))
        .map(|(_, body)| body.clone())
        .collect();
    assert_eq!(patches[0]["spec"]["unschedulable"], true);
    assert_eq!(patches[1]["metadata"]["annotations"]["skein.dev/cordoned"], Value::Null);
}

#[tokio::test]
async fn eviction_respects_budgets_and_leaves_what_stays() {
    let pod = |name: &str, extra: Value| {
        let mut pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "status": {"phase": "Running"}});
        pod["metadata"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod
    };
    let pods = json!({"items": [
        pod("plain", json!({})),
        pod("held", json!({})),
        pod("gone", json!({})),
        pod("going", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        pod("daemon", json!({"ownerReferences": [{"kind": "DaemonSet", "controller": true}]})),
        pod("mirror", json!({"annotations": {"kubernetes.io/config.mirror": "x"}})),
    ]});
    for (version, api) in [("v1.34.1+k3s1", "policy/v1"), ("v1.21.2+k3s1", "policy/v1beta1")] {
        let (kube, seen) = stand_in(answers(&[
            ("GET /version", 200, json!({"gitVersion": version})),
            ("GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1", 200, pods.clone()),
            ("POST /api/v1/namespaces/d/pods/plain/eviction", 201, json!({})),
            (
                "POST /api/v1/namespaces/d/pods/held/eviction",
                429,
                json!({"message": "would violate the budget"}),
            ),
        ]))
        .await;
        let progress = kube.evict("n1").await.unwrap();
        assert_eq!(progress.leaving, ["d/plain", "d/going"]);
        assert_eq!(progress.held, [("d/held".to_owned(), "would violate the budget".to_owned())]);
        assert!(progress.staying == 2 && !progress.done());
        let posts: Vec<Value> = seen
            .lock()
            .unwrap()
            .iter()
            .filter(|(what, _)| what.starts_with("POST"))
            .map(|(_, body)| body.clone())
            .collect();
        assert_eq!(posts.len(), 3, "no more than may go is asked");
        assert!(posts.iter().all(|post| post["apiVersion"] == api));
    }
}

#[tokio::test]
async fn removal_repeats_without_harm_and_errors_say_why() {
    let (kube, seen) =
        stand_in(answers(&[("GET /readyz", 500, json!({"message": "etcd failed"}))])).await;
    kube.delete_node("n1").await.unwrap();
    kube.delete_node_password("n1").await.unwrap();
    assert_eq!(
        seen.lock().unwrap()[1].0,
        "DELETE /api/v1/namespaces/kube-system/secrets/n1.node-password.k3s"
    );
    let error = kube.readyz().await.unwrap_err();
    assert!(
        matches!(&error, KubeError::Refused { status: 500, message, .. } if message == "etcd failed"),
        "{error}"
    );
}

#[tokio::test]
async fn another_authority_is_not_trusted() {
    let (_, _) = stand_in(Answers::new()).await;
    let (kube, _) = stand_in(Answers::new()).await;
    let (other, _) = stand_in(Answers::new()).await;
    let text = format!("{kube:?}{other:?}");
    assert!(!text.contains("PRIVATE"));
    let bad = Secret::new("apiVersion: v1\n");
    assert!(matches!(Kube::new(&bad, None), Err(KubeError::Kubeconfig(_))));
}
