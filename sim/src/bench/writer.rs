//! Creates `ConfigMaps` through a VIP, each over a connection of its own. Shell.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use serde_norway::Value;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::observer::Pen;
use super::record::Clock;

/// How long one write may take.
const WRITE_MAX: Duration = Duration::from_secs(1);
/// Pause between the beginnings of two writes of one client.
const WRITE_EVERY: Duration = Duration::from_millis(30);
/// How long tidying up may take.
const TIDY_MAX: Duration = Duration::from_secs(30);
const PATH: &str = "/api/v1/namespaces/default/configmaps";
const LABEL: &str = "skein-bench";

/// A client of one API.
pub(super) struct Writer {
    http: reqwest::Client,
    url: String,
}

impl Writer {
    /// Reads a kubeconfig.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read(path).map_err(|e| wrong(&e))?;
        let config: Value = serde_norway::from_slice(&text).map_err(|e| wrong(&e))?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let data = |of: &Value, key: &str| -> Result<Vec<u8>, String> {
            let text = of[key].as_str().ok_or_else(|| wrong(&format!("no {key}")))?;
            STANDARD.decode(text).map_err(|e| wrong(&e))
        };
        let url = cluster["server"].as_str().ok_or_else(|| wrong(&"no server"))?.to_owned();
        let ca = data(cluster, "certificate-authority-data")?;
        let mut identity = data(user, "client-certificate-data")?;
        identity.push(b'\n');
        identity.extend(data(user, "client-key-data")?);
        // A second call in one process finds the provider in place.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(WRITE_MAX)
            .pool_max_idle_per_host(0)
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca).map_err(|e| wrong(&e))?)
            .identity(reqwest::Identity::from_pem(&identity).map_err(|e| wrong(&e))?)
            .build()
            .map_err(|e| wrong(&e))?;
        Ok(Self { http, url })
    }

    async fn create(&self) -> Result<(), String> {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"generateName": "bench-", "labels": {LABEL: "failover"}},
        });
        let sent = self.http.post(format!("{}{PATH}?timeout=1s", self.url)).json(&body).send();
        match sent.await {
            Ok(answer) if answer.status().as_u16() == 201 => Ok(()),
            Ok(answer) => Err(answer.status().to_string()),
            Err(e) if e.is_timeout() => Err("timed out".into()),
            Err(e) if e.is_connect() => Err("no connection".into()),
            Err(_) => Err("broken off".into()),
        }
    }
}

/// Writes one after another until the end.
pub(super) async fn write_on(pen: Pen, writer: Arc<Writer>, ended: watch::Receiver<bool>) {
    let mut ticks = interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !*ended.borrow() {
        ticks.tick().await;
        let at = pen.now();
        let done = writer.create().await;
        pen.sample(Clock::Write, at, done.map(|()| None));
    }
}

/// Deletes at the end what was created.
pub(super) async fn tidy_up(writer: Arc<Writer>, mut ended: watch::Receiver<bool>) {
    let _ = ended.changed().await;
    let url = format!("{}{PATH}?labelSelector={LABEL}%3Dfailover", writer.url);
    let _ = timeout(TIDY_MAX, writer.http.delete(url).timeout(TIDY_MAX).send()).await;
}
