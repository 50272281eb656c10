//! A certificate authority of the cluster's own, as K3s takes it. Draws its keys from the system.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// K3s' authorities, as paths below `server/tls` without suffix.
const AUTHORITIES: [&str; 5] =
    ["server-ca", "client-ca", "request-header-ca", "etcd/peer-ca", "etcd/server-ca"];
const DAY_S: i64 = 86_400;
const LIFE_DAYS: i64 = 20 * 365;

/// The certificate authorities of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaBundle {
    /// Each authority under its path below `server/tls`, without suffix.
    pub authorities: Vec<Authority>,
    /// The root's certificate in PEM; its fingerprint is what tokens carry.
    pub root_certificate: String,
    /// The root's key; K3s never needs it, so it is kept off the hosts.
    pub root_key: Secret,
}

/// One of K3s' authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its path below `server/tls` without suffix, such as `etcd/peer-ca`.
    pub name: String,
    /// The key, in PEM (SEC 1).
    pub key: Secret,
    /// Certificate, intermediate and root, in PEM.
    pub chain: String,
    /// A self-signed certificate over the same key, for releases that take one certificate only.
    pub alone: String,
}

/// Why no authority could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the cluster's certificate authority: {0}")]
pub struct CaError(pub(crate) String);

/// Makes the authorities of a new cluster, valid from a day before `now` (Unix seconds) for twenty years, as K3s' own script for custom authorities lays them out.
///
/// The key of service account tokens is not among them: K3s makes it and hands it from server to server itself.
pub fn make_cluster_ca(cluster: &str, now: i64) -> Result<CaBundle, CaError> {
    let root = Signer::new(&format!("skein-{cluster}-root"), now, None)?;
    let middle = Signer::new(&format!("skein-{cluster}-intermediate"), now, Some(&root))?;
    let mut authorities = Vec::new();
    for name in AUTHORITIES {
        let common = format!("k3s-{}@{now}", name.replace('/', "-"));
        let signed = Signer::new(&common, now, Some(&middle))?;
        let alone = signed.params.self_signed(&signed.key).map_err(failed)?.pem();
        authorities.push(Authority {
            name: name.to_owned(),
            key: sec1(&signed.key)?,
            chain: format!("{}{}{}", signed.certificate, middle.certificate, root.certificate),
            alone,
        });
    }
    Ok(CaBundle { authorities, root_key: sec1(&root.key)?, root_certificate: root.certificate })
}

impl CaBundle {
    /// The files to lay into `server/tls` before the first start, as path and content; `chained` where the release takes chains.
    pub fn files(&self, chained: bool) -> Vec<(PathBuf, Secret)> {
        let mut files = Vec::new();
        for authority in &self.authorities {
            let certificate = if chained { &authority.chain } else { &authority.alone };
            files.push((PathBuf::from(format!("{}.key", authority.name)), authority.key.clone()));
            files.push((
                PathBuf::from(format!("{}.crt", authority.name)),
                Secret::new(certificate.clone()),
            ));
        }
        files
    }
}

/// Every file that a bundle lays, below `server/tls`.
pub(crate) fn paths() -> Vec<PathBuf> {
    AUTHORITIES
        .iter()
        .flat_map(|name| ["key", "crt"].map(|suffix| PathBuf::from(format!("{name}.{suffix}"))))
        .collect()
}

struct Signer {
    params: CertificateParams,
    key: KeyPair,
    certificate: String,
}

impl Signer {
    fn new(common_name: &str, now: i64, by: Option<&Self>) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        params.not_before = moment(now - DAY_S)?;
        params.not_after = moment(now + LIFE_DAYS * DAY_S)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate = match by {
            None => params.self_signed(&key),
            Some(parent) => {
                params.use_authority_key_identifier_extension = true;
                params.signed_by(&key, &Issuer::from_params(&parent.params, &parent.key))
            }
        };
        let certificate = certificate.map_err(failed)?.pem();
        Ok(Self { params, key, certificate })
    }
}

fn moment(unix: i64) -> Result<time::OffsetDateTime, CaError> {
    time::OffsetDateTime::from_unix_timestamp(unix).map_err(|error| CaError(error.to_string()))
}

fn failed(error: rcgen::Error) -> CaError {
    CaError(error.to_string())
}

/// The key as SEC 1 (RFC 5915), the form that every release reads: version, scalar, curve, public point.
fn sec1(key: &KeyPair) -> Result<Secret, CaError> {
    const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
    const CURVE: [u8; 12] =
        [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let outer = Zeroizing::new(key.serialize_der());
    let at = outer.windows(BEFORE.len()).position(|window| window == BEFORE);
    let scalar = at
        .and_then(|at| outer.get(at + 5..at + 37))
        .ok_or_else(|| CaError("a key of unknown shape".into()))?;
    let public = key.der_bytes();
    let mut body = Zeroizing::new(Vec::with_capacity(128));
    body.extend_from_slice(&BEFORE);
    body.extend_from_slice(scalar);
    body.extend_from_slice(&CURVE);
    body.extend_from_slice(&[0xa1, 0x44, 0x03, 0x42, 0x00]);
    body.extend_from_slice(public);
    let length = u8::try_from(body.len()).ok().filter(|length| *length < 128);
    let length = length.ok_or_else(|| CaError("a key of unknown size".into()))?;
    let mut der = Zeroizing::new(vec![0x30, length]);
    der.extend_from_slice(&body);
    let text = Zeroizing::new(STANDARD.encode(&*der));
    let mut pem = Zeroizing::new(String::from("-----BEGIN EC PRIVATE KEY-----\n"));
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END EC PRIVATE KEY-----\n");
    Ok(Secret::new(pem.as_str()))
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    #[test]
    fn a_bundle_has_every_authority_as_chain_and_alone() {
        let bundle = make_cluster_ca("lab", 1_795_000_000).unwrap();
        for chained in [true, false] {
            let files = bundle.files(chained);
            assert_eq!(files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), paths());
            for (path, content) in files {
                if path.extension().is_some_and(|suffix| suffix == "key") {
                    let key = PrivateKeyDer::from_pem_slice(content.expose().as_bytes()).unwrap();
                    assert!(matches!(key, PrivateKeyDer::Sec1(_)));
                    assert!(rustls::crypto::ring::sign::any_ecdsa_type(&key).is_ok());
                } else {
                    let count = CertificateDer::pem_slice_iter(content.expose().as_bytes())
                        .map(Result::unwrap)
                        .count();
                    assert_eq!(count, if chained { 3 } else { 1 });
                    assert_eq!(content.expose().contains(&bundle.root_certificate), chained);
                }
            }
        }
        assert!(!format!("{bundle:?}").contains("PRIVATE KEY"));
    }
}
