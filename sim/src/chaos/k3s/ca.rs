//! Stand-ins for a cluster's certificates and kubeconfig. Pure: randomness is passed in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k3s::ca::Authority;
use k3s::{CaBundle, Secret};
use sha2::{Digest, Sha256};

/// As [`k3s::make_cluster_ca`] names them, in its order.
const AUTHORITIES: [&str; 5] =
    ["server-ca", "client-ca", "request-header-ca", "etcd/peer-ca", "etcd/server-ca"];

/// Makes stand-ins for a cluster's authorities.
pub fn cluster_ca(cluster: &str, random: [u8; 32]) -> CaBundle {
    let digest = |purpose: &str| {
        let hash = Sha256::new().chain_update(random).chain_update(cluster);
        hash.chain_update([0]).chain_update(purpose).finalize()
    };
    let certificate =
        |purpose: &str| pem("CERTIFICATE", &digest(&format!("{purpose} certificate")));
    let key =
        |purpose: &str| Secret::new(pem("EC PRIVATE KEY", &digest(&format!("{purpose} key"))));
    let root_certificate = certificate("root");
    let authority = |name: &str| Authority {
        name: name.to_owned(),
        key: key(name),
        chain: format!("{}{}{root_certificate}", certificate(name), certificate("intermediate")),
        alone: certificate(&format!("{name} alone")),
    };
    let authorities = AUTHORITIES.iter().map(|name| authority(name)).collect();
    CaBundle { authorities, root_key: key("root"), root_certificate }
}

/// Makes something that looks like PEM.
pub(super) fn pem(kind: &str, bytes: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(bytes))
}

/// Returns the hash that a token carries for an authority.
pub(super) fn fingerprint(root_certificate: &str) -> String {
    hex::encode(Sha256::digest(root_certificate))
}

/// Makes the admin kubeconfig that K3s writes on a server, from its authority in PEM.
pub(super) fn kubeconfig(server_ca: &str) -> String {
    let authority = STANDARD.encode(server_ca);
    let admin = Sha256::digest(format!("admin of {server_ca}"));
    let certificate = STANDARD.encode(pem("CERTIFICATE", &admin));
    let key = STANDARD.encode(pem("EC PRIVATE KEY", &Sha256::digest(admin)));
    format!(
        "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {authority}
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    )
}

/// Reads from a kubeconfig which authority it trusts, in PEM.
pub(super) fn trusted(kubeconfig: &str) -> Result<String, String> {
    let access = k3s::kubeconfig::access(kubeconfig).map_err(|error| error.to_string())?;
    let k3s::kubeconfig::Material::Inline(text) = access.ca else {
        return Err("its authority lies in a file".into());
    };
    let bytes = STANDARD.decode(text.expose().trim()).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}
