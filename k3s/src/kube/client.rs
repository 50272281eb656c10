//! A small client for the Kubernetes API with client certificates. Shell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::{KubeError, NodeInfo};
use crate::kubeconfig::{Material, access};
use crate::release::Version;
use crate::secret::Secret;

/// The annotation under which a cordon of ours is remembered, so that only ours is undone.
const CORDON_MARK: &str = "skein.dev/cordoned";
/// How long one request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The Kubernetes API of one cluster.
#[derive(Debug, Clone)]
pub struct Kube {
    http: reqwest::Client,
    url: String,
}

impl Kube {
    /// A client with the certificates of `kubeconfig`, at its server or at `url`. Reads files that the kubeconfig names.
    pub fn new(kubeconfig: &Secret, url: Option<&str>) -> Result<Self, KubeError> {
        Self::with_deadline(kubeconfig, url, REQUEST_DEADLINE)
    }

    /// As [`Kube::new`], with another deadline for each request.
    pub fn with_deadline(
        kubeconfig: &Secret,
        url: Option<&str>,
        deadline: Duration,
    ) -> Result<Self, KubeError> {
        let bad = |error: &dyn std::fmt::Display| KubeError::Kubeconfig(error.to_string());
        let found = access(kubeconfig.expose()).map_err(|error| bad(&error))?;
        let mut roots = rustls::RootCertStore::empty();
        let ca = pem(&found.ca)?;
        roots.add_parsable_certificates(certificates(&ca)?);
        if roots.is_empty() {
            return Err(KubeError::Kubeconfig("it trusts no certificate".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(pem(&found.key)?.expose().as_bytes())
            .map_err(|error| bad(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&pem(&found.certificate)?)?, key)
            .map_err(|error| bad(&error))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE.min(deadline))
            .timeout(deadline)
            .build()
            .map_err(|error| bad(&error))?;
        let url = url.unwrap_or(&found.server).trim_end_matches('/').to_owned();
        Ok(Self { http, url })
    }

    /// Whether the API is ready to serve; the error says what is not.
    pub async fn readyz(&self) -> Result<(), KubeError> {
        self.text("/readyz").await.map(drop)
    }

    /// The API's version.
    pub async fn version(&self) -> Result<Version, KubeError> {
        let answer = self.json(reqwest::Method::GET, "/version", None).await?;
        let text = answer["gitVersion"].as_str().unwrap_or_default();
        Version::parse(text).ok_or_else(|| KubeError::Answer {
            what: "/version".into(),
            detail: format!("no version in {text:?}"),
        })
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, KubeError> {
        let answer = self.json(reqwest::Method::GET, "/api/v1/nodes", None).await?;
        let items = answer["items"].as_array().map_or(&[] as &[Value], Vec::as_slice);
        Ok(items.iter().map(node).collect())
    }

    /// One node, `None` where there is none of that name.
    pub async fn node(&self, name: &str) -> Result<Option<NodeInfo>, KubeError> {
        absent(
            self.json(reqwest::Method::GET, &format!("/api/v1/nodes/{name}"), None)
                .await
                .map(|answer| node(&answer)),
        )
    }

    /// Keeps new pods away from `name`. A cordon that somebody else made is not taken over. Repeating does no harm.
    pub async fn cordon(&self, name: &str) -> Result<(), KubeError> {
        if self.node(name).await?.is_some_and(|node| node.cordoned) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {CORDON_MARK: "true"}}, "spec": {"unschedulable": true}});
        self.patch_node(name, patch).await
    }

    /// Undoes a cordon of ours, and only that. Says whether there was one.
    pub async fn uncordon(&self, name: &str) -> Result<bool, KubeError> {
        if !self.node(name).await?.is_some_and(|node| node.cordoned_by_us) {
            return Ok(false);
        }
        let patch = json!({"metadata": {"annotations": {CORDON_MARK: null}}, "spec": {"unschedulable": null}});
        self.patch_node(name, patch).await.map(|()| true)
    }

    /// Deletes the Node object; K3s then removes a server's etcd member. One that is gone already is no error.
    pub async fn delete_node(&self, name: &str) -> Result<(), KubeError> {
        let path = format!("/api/v1/nodes/{name}");
        absent(self.json(reqwest::Method::DELETE, &path, None).await).map(drop)
    }

    /// Deletes the secret that ties `name` to its node password, so that a new machine may take the name.
    pub async fn delete_node_password(&self, name: &str) -> Result<(), KubeError> {
        let path = format!("/api/v1/namespaces/kube-system/secrets/{name}.node-password.k3s");
        absent(self.json(reqwest::Method::DELETE, &path, None).await).map(drop)
    }

    async fn patch_node(&self, name: &str, patch: Value) -> Result<(), KubeError> {
        self.json(reqwest::Method::PATCH, &format!("/api/v1/nodes/{name}"), Some(patch))
            .await
            .map(drop)
    }

    pub(super) async fn json(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, KubeError> {
        let what = format!("{method} {path}");
        let text = self.send(method, path, body).await?;
        serde_json::from_str(&text)
            .map_err(|error| KubeError::Answer { what, detail: error.to_string() })
    }

    async fn text(&self, path: &str) -> Result<String, KubeError> {
        self.send(reqwest::Method::GET, path, None).await
    }

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<String, KubeError> {
        let what = format!("{method} {path}");
        let kind = if method == reqwest::Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", kind).body(body.to_string());
        }
        let unreachable = |error: reqwest::Error| KubeError::Unreachable {
            url: self.url.clone(),
            detail: chain(&error),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.text().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(text);
        }
        Err(KubeError::Refused { what, status: status.as_u16(), message: message(&text) })
    }
}

/// Names the cryptography for clients that are not configured here. Without it building one panics.
pub(crate) fn provide() {
    // An error means that the program has chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The chain of causes: reqwest's own text leaves out the one that matters.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}

/// What a refusal says: Kubernetes' own message, or of a list of checks those that failed.
fn message(body: &str) -> String {
    let status: Option<Value> = serde_json::from_str(body).ok();
    if let Some(said) = status.as_ref().and_then(|status| status["message"].as_str()) {
        return said.chars().take(400).collect();
    }
    let failed: Vec<&str> = body.lines().filter(|line| line.starts_with("[-]")).collect();
    let said = if failed.is_empty() { body.trim().to_owned() } else { failed.join(", ") };
    said.chars().filter(|letter| !letter.is_control()).take(400).collect()
}

pub(super) fn absent<T>(outcome: Result<T, KubeError>) -> Result<Option<T>, KubeError> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(KubeError::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn pem(material: &Material) -> Result<Secret, KubeError> {
    let bytes = match material {
        Material::Inline(text) => STANDARD
            .decode(text.expose().trim())
            .map_err(|error| KubeError::Kubeconfig(error.to_string()))?,
        Material::File(path) => std::fs::read(path)
            .map_err(|error| KubeError::Kubeconfig(format!("{}: {error}", path.display())))?,
    };
    String::from_utf8(bytes)
        .map(Secret::new)
        .map_err(|error| KubeError::Kubeconfig(error.utf8_error().to_string()))
}

fn certificates(pem: &Secret) -> Result<Vec<CertificateDer<'static>>, KubeError> {
    CertificateDer::pem_slice_iter(pem.expose().as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| KubeError::Kubeconfig(error.to_string()))
}

fn node(object: &Value) -> NodeInfo {
    let texts = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let mut cidrs = texts(&object["spec"]["podCIDRs"]);
    if cidrs.is_empty() {
        cidrs.extend(object["spec"]["podCIDR"].as_str().map(str::to_owned));
    }
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
    let labels: BTreeMap<String, String> =
        serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
    let annotation = &object["metadata"]["annotations"][CORDON_MARK];
    let cordoned = object["spec"]["unschedulable"] == true;
    NodeInfo {
        name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        ready: ready.is_some_and(|ready| ready["status"] == "True"),
        detail: ready
            .map_or("no condition yet", |ready| ready["message"].as_str().unwrap_or_default())
            .to_owned(),
        cordoned,
        cordoned_by_us: cordoned && annotation == "true",
        pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        addresses: addresses
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect(),
        server: ["control-plane", "master"]
            .iter()
            .any(|role| labels.contains_key(&format!("node-role.kubernetes.io/{role}"))),
        version: object["status"]["nodeInfo"]["kubeletVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    }
}
