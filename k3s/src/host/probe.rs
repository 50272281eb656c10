//! Is K3s healthy, and which credentials has it written? Shell.

use std::time::Duration;

use super::HostError;
use super::files;
use crate::kube::Kube;
use crate::observe::{Credentials, Probe};
use crate::render::Layout;
use crate::secret::Secret;
use crate::spec::RoleKind;

/// How long a probe may take.
const DEADLINE: Duration = Duration::from_secs(4);
/// kubelet's own health, which it serves on loopback in every release.
const KUBELET: &str = "http://127.0.0.1:10248/healthz";

/// K3s' credentials as far as they are on disk.
pub(super) fn credentials(layout: &Layout) -> Result<Credentials, HostError> {
    let server = layout.data_dir.join("server");
    Ok(Credentials {
        server_token: files::read_secret(&server.join("token"))?,
        agent_token: files::read_secret(&server.join("agent-token"))?,
        kubeconfig: files::read_secret(&layout.kubeconfig())?,
        server_ca: files::read(&server.join("tls/server-ca.crt"))?
            .filter(|pem| pem.trim_end().ends_with("-----END CERTIFICATE-----")),
    })
}

/// Asks K3s of this role on this host.
pub(super) async fn probe(
    role: RoleKind,
    node: Option<&str>,
    layout: &Layout,
    found: &Credentials,
) -> Probe {
    match role {
        RoleKind::Server => match &found.kubeconfig {
            None => {
                Probe::NotYet(format!("it has not written {} yet", layout.kubeconfig().display()))
            }
            Some(kubeconfig) => server(kubeconfig).await,
        },
        RoleKind::Agent => agent(node, layout).await,
    }
}

/// An answer without credentials proves only that somebody listens, so the admin's are used.
async fn server(kubeconfig: &Secret) -> Probe {
    let kube = match Kube::with_deadline(kubeconfig, None, DEADLINE) {
        Ok(kube) => kube,
        Err(error) => return Probe::NotReady(error.to_string()),
    };
    match kube.readyz().await {
        Ok(()) => Probe::Ready,
        Err(error) => Probe::NotReady(error.to_string()),
    }
}

/// A worker is healthy when its own Node is, asked with kubelet's credentials; where those cannot be used, when kubelet says so.
async fn agent(node: Option<&str>, layout: &Layout) -> Probe {
    let path = layout.data_dir.join("agent/kubelet.kubeconfig");
    let kubeconfig = match files::read(&path) {
        Ok(Some(text)) => Secret::new(text),
        Ok(None) => return Probe::NotYet("it has not registered at a server yet".to_owned()),
        Err(error) => return Probe::NotYet(error.to_string()),
    };
    let asked = match (Kube::with_deadline(&kubeconfig, None, DEADLINE), node) {
        (Ok(kube), Some(node)) => kube.node(node).await,
        (Err(error), _) => Err(error),
        (Ok(_), None) => return kubelet().await,
    };
    match asked {
        Ok(Some(node)) if node.ready => Probe::Ready,
        Ok(Some(node)) => Probe::NotReady(format!("its Node is not ready: {}", node.detail)),
        Ok(None) => Probe::NotReady("its Node is not there yet".to_owned()),
        Err(crate::kube::KubeError::Kubeconfig(_)) => kubelet().await,
        Err(error) => Probe::NotReady(error.to_string()),
    }
}

async fn kubelet() -> Probe {
    crate::kube::provide();
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build()?;
        client.get(KUBELET).send().await?.error_for_status()
    };
    match ask.await {
        Ok(_) => Probe::Ready,
        Err(error) => Probe::NotReady(format!(
            "kubelet does not say that it is healthy: {}",
            crate::kube::chain(&error)
        )),
    }
}
