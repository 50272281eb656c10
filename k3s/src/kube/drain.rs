//! Eviction of a node's pods, one round at a time. Shell.

use reqwest::Method;
use serde_json::{Value, json};

use super::client::absent;
use super::{Kube, KubeError};

/// What one round of eviction left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvictProgress {
    /// Pods that were asked to go and still are there, as `namespace/name`.
    pub leaving: Vec<String>,
    /// Pods that a disruption budget holds for now, with its words.
    pub held: Vec<(String, String)>,
    /// Pods that stay by nature: of a DaemonSet, or mirrors of static pods.
    pub staying: usize,
}

impl EvictProgress {
    /// Whether nothing is left to wait for.
    pub fn done(&self) -> bool {
        self.leaving.is_empty() && self.held.is_empty()
    }
}

impl Kube {
    /// Asks every pod of `node` to go that may, once; call again until it is done or the caller's deadline has passed.
    ///
    /// A disruption budget's refusal (429) is respected and reported. Pods of DaemonSets, mirror pods and finished pods are left.
    pub async fn evict(&self, node: &str) -> Result<EvictProgress, KubeError> {
        let v1 = self.version().await?.evicts_with_v1();
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
        let answer = self.json(Method::GET, &path, None).await?;
        let mut progress = EvictProgress::default();
        for pod in answer["items"].as_array().into_iter().flatten() {
            if stays(pod) {
                progress.staying += 1;
                continue;
            }
            self.evict_pod(pod, v1, &mut progress).await?;
        }
        Ok(progress)
    }

    async fn evict_pod(
        &self,
        pod: &Value,
        v1: bool,
        progress: &mut EvictProgress,
    ) -> Result<(), KubeError> {
        let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let shown = format!("{namespace}/{name}");
        if pod["metadata"]["deletionTimestamp"].is_string() {
            progress.leaving.push(shown);
            return Ok(());
        }
        let eviction = json!({
            "apiVersion": if v1 { "policy/v1" } else { "policy/v1beta1" },
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": text("uid")}},
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
        match absent(self.json(Method::POST, &path, Some(eviction)).await) {
            Ok(Some(_)) => progress.leaving.push(shown),
            Ok(None) | Err(KubeError::Refused { status: 409, .. }) => {}
            Err(KubeError::Refused { status: 429, message, .. }) => {
                progress.held.push((shown, message))
            }
            // A budget that two controllers claim, or an admission hook: no reason to leave the other pods.
            Err(KubeError::Refused { status: 403 | 500, message, .. }) => {
                progress.held.push((shown, message))
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn stays(pod: &Value) -> bool {
    let mirror = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let daemon = owners
        .into_iter()
        .flatten()
        .any(|owner| owner["kind"] == "DaemonSet" && owner["controller"] == true);
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    mirror || daemon || finished
}
