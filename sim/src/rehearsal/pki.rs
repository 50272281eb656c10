//! The rehearsal's certificates: authorities that were laid before the start are taken, as K3s does. Shell.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use sha2::{Digest as _, Sha256};

use super::write;

fn wrong(e: impl std::fmt::Display) -> String {
    format!("certificates: {e}")
}

/// An authority with its key.
pub(crate) struct Authority {
    pub(crate) cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Takes the authority at `<dir>/<name>.{crt,key}`, or makes it there.
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Self, String> {
        let (crt, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        if !crt.exists() {
            let pair = KeyPair::generate().map_err(wrong)?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, format!("rehearsal-{name}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let cert = params.self_signed(&pair).map_err(wrong)?;
            write(&crt, &cert.pem())?;
            write(&key, &pair.serialize_pem())?;
        }
        let cert_pem = std::fs::read_to_string(&crt).map_err(wrong)?;
        let key_pem = std::fs::read_to_string(&key).map_err(wrong)?;
        let pair = read_key(&key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, pair).map_err(wrong)?;
        Ok(Self { cert_pem, issuer })
    }

    /// Signs a leaf; returns certificate (with the authority's chain) and key.
    pub(crate) fn sign(
        &self,
        name: &str,
        group: &str,
        sans: &[String],
    ) -> Result<(String, String), String> {
        let pair = KeyPair::generate().map_err(wrong)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for san in sans {
            let san = match san.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(san.as_str().try_into().map_err(wrong)?),
            };
            params.subject_alt_names.push(san);
        }
        let cert = params.signed_by(&pair, &self.issuer).map_err(wrong)?;
        Ok((format!("{}{}", cert.pem(), self.cert_pem), pair.serialize_pem()))
    }
}

/// Reads a key in PKCS #8, or in SEC 1, as K3s' own authorities have it.
fn read_key(pem: &str) -> Result<KeyPair, String> {
    use rustls_pki_types::pem::PemObject as _;
    let der = rustls_pki_types::PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(wrong)?;
    let der = match &der {
        rustls_pki_types::PrivateKeyDer::Sec1(sec1) => {
            let pkcs8 =
                p256_pkcs8(sec1.secret_sec1_der()).ok_or("certificates: not a P-256 key")?;
            rustls_pki_types::PrivateKeyDer::Pkcs8(pkcs8.into())
        }
        other => other.clone_key(),
    };
    KeyPair::try_from(&der).map_err(wrong)
}

/// Wraps a P-256 key of SEC 1 (RFC 5915) into PKCS #8 (RFC 5958), in the one form that ring reads.
fn p256_pkcs8(sec1: &[u8]) -> Option<Vec<u8>> {
    const HEAD: [u8; 36] = [
        0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d,
        0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30,
        0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
    ];
    const PUBLIC: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
    let private = sec1.strip_prefix(&[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20])?.get(..32)?;
    let public = sec1.get(sec1.len().checked_sub(65)?..)?;
    Some([&HEAD[..], private, &PUBLIC, public].concat())
}

/// Returns the hash that tokens carry: SHA-256 of the authority's file, as clients fetch it from /cacerts.
pub(super) fn token_hash(cert_pem: &str) -> String {
    hex::encode(Sha256::digest(cert_pem.as_bytes()))
}
