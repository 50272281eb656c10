//! `kubectl get --raw PATH` and `kubectl get nodes`, for trying the rehearsal by hand. Shell.

use serde_json::Value;

/// Runs the little of kubectl that there is.
pub(super) async fn run(args: &[String]) -> Result<u8, String> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (path, raw) = match args.as_slice() {
        ["get", "--raw", path, ..] => (*path, true),
        ["get", "nodes" | "node" | "no", ..] => ("/api/v1/nodes", false),
        _ => return Err("the rehearsal's kubectl has only: get nodes, get --raw PATH".into()),
    };
    let file = std::env::var("KUBECONFIG").unwrap_or_else(|_| "/etc/rancher/k3s/k3s.yaml".into());
    let text = std::fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
    let access = k3s::kubeconfig::access(&text).map_err(|e| e.to_string())?;
    let bytes = |m: &k3s::kubeconfig::Material| match m {
        k3s::kubeconfig::Material::Inline(text) => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD
                .decode(text.expose())
                .map_err(|e| e.to_string())
        }
        k3s::kubeconfig::Material::File(path) => {
            std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
        }
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wrong = |e: reqwest::Error| e.to_string();
    let identity = [bytes(&access.certificate)?, b"\n".to_vec(), bytes(&access.key)?].concat();
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(super::SECOND * 5)
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(&bytes(&access.ca)?).map_err(wrong)?)
        .identity(reqwest::Identity::from_pem(&identity).map_err(wrong)?)
        .build()
        .map_err(wrong)?;
    let answer = client.get(format!("{}{path}", access.server)).send().await.map_err(wrong)?;
    let good = answer.status().is_success();
    let text = answer.text().await.map_err(wrong)?;
    if raw || !good {
        crate::lab::print(text.trim_end());
        return Ok(u8::from(!good));
    }
    let nodes: Value = serde_json::from_str(&text).unwrap_or_default();
    crate::lab::print(format!("{:<10} {:<8} {:<16} VERSION", "NAME", "STATUS", "ROLES"));
    for n in nodes["items"].as_array().into_iter().flatten() {
        let server = n["metadata"]["labels"]["node-role.kubernetes.io/control-plane"].is_string();
        let status =
            if n["spec"]["unschedulable"] == true { "Ready,SchedulingDisabled" } else { "Ready" };
        let name = n["metadata"]["name"].as_str().unwrap_or_default();
        let version = n["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
        crate::lab::print(format!(
            "{name:<10} {status:<8} {:<16} {version}",
            if server { "control-plane" } else { "<none>" }
        ));
    }
    Ok(0)
}
