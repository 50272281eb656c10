//! The rehearsal's joining side: authority by hash, registration, the agent's life. Shell.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::options::Options;
use super::pki::token_hash;
use super::table::Registration;
use super::{SECOND, log, notify_ready, write};

/// A token in K3s' form: `K10<hash>::<user>:<secret>`, or the secret alone.
pub(super) struct Token {
    hash: Option<String>,
    pub(super) user: String,
    pub(super) secret: String,
}

/// Reads a token.
pub(super) fn parse_token(text: &str) -> Token {
    let parsed = text.strip_prefix("K10").and_then(|rest| {
        let (hash, credentials) = rest.split_once("::")?;
        let (user, secret) = credentials.split_once(':')?;
        Some(Token { hash: Some(hash.into()), user: user.into(), secret: secret.into() })
    });
    parsed.unwrap_or_else(|| Token { hash: None, user: "server".into(), secret: text.into() })
}

fn http(ca: Option<&str>) -> Result<reqwest::Client, String> {
    // A second call in one process finds the provider in place.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5));
    let builder = match ca {
        Some(pem) => {
            let roots =
                reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|e| e.to_string())?;
            builder.tls_certs_only(roots)
        }
        // Only for fetching the authority, whose hash is checked before anything is sent.
        None => builder.danger_accept_invalid_certs(true),
    };
    builder.build().map_err(|e| e.to_string())
}

/// A server to talk to, whose authority was checked against the token.
pub(super) struct Peer {
    url: String,
    http: reqwest::Client,
    token: Token,
    pub(super) ca: String,
}

impl Peer {
    /// Fetches the authority and checks it, before the secret is sent.
    pub(super) async fn open(url: &str, token: &str) -> Result<Self, String> {
        let token = parse_token(token);
        let get = http(None)?.get(format!("{url}/cacerts")).send().await;
        let ca = get.map_err(|e| format!("failed to get CA certs from {url}: {e}"))?;
        let ca = ca.text().await.map_err(|e| format!("failed to get CA certs: {e}"))?;
        if token.hash.as_ref().is_some_and(|h| *h != token_hash(&ca)) {
            return Err("token CA hash does not match the Cluster CA certificate hash".into());
        }
        Ok(Self { url: url.into(), http: http(Some(&ca))?, token, ca })
    }

    /// Posts JSON to one of the rehearsal's own paths.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.basic_auth(&self.token.user, Some(&self.token.secret)).json(body);
        let answer = request.send().await.map_err(|e| format!("{path}: {e}"))?;
        if !answer.status().is_success() {
            return Err(format!("{path}: {}", answer.status()));
        }
        answer.json().await.map_err(|e| format!("{path}: {e}"))
    }
}

/// Returns what this node says of itself.
pub(super) fn registration(options: &Options) -> Registration {
    Registration {
        name: options.node_name(),
        server: options.is_server,
        addresses: options.all("node-ip"),
    }
}

/// Runs an agent until it is killed.
pub(super) async fn run_agent(options: &Options) -> Result<(), String> {
    let url = options.get("server").ok_or("--server is required")?;
    let token = options.get("token").ok_or("--token is required")?;
    let own = json!(registration(options));
    loop {
        match register(options, url, token, &own).await {
            Ok(()) => break,
            Err(e) => log(format!("waiting to register: {e}")),
        }
        sleep(SECOND).await;
    }
    log("agent is up");
    notify_ready();
    loop {
        sleep(SECOND * 10).await;
        if let Err(e) = register(options, url, token, &own).await {
            log(format!("heartbeat: {e}"));
        }
    }
}

async fn register(options: &Options, url: &str, token: &str, own: &Value) -> Result<(), String> {
    let peer = Peer::open(url, token).await?;
    let answer = peer.post("/v1-rehearsal/register", own).await?;
    let path = options.data_dir().join("agent/kubelet.kubeconfig");
    if !path.exists() {
        let (cert, key) = (
            answer["cert"].as_str().unwrap_or_default(),
            answer["key"].as_str().unwrap_or_default(),
        );
        write(&path, &kubeconfig(url, &peer.ca, cert, key))?;
    }
    Ok(())
}

/// Writes a kubeconfig as K3s does: one cluster, one user, one context, all called `default`.
pub(super) fn kubeconfig(url: &str, ca: &str, cert: &str, key: &str) -> String {
    use base64::Engine as _;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "# written by the rehearsal, a stand-in for K3s\napiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: {url}\n  name: default\n\
         contexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\nkind: Config\npreferences: {{}}\n\
         users:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        b64(ca),
        b64(cert),
        b64(key)
    )
}
