//! The fleet's certificates: made with rcgen, read with x509-parser. Pure, given the keys.
//!
//! A node's certificate names its UUID as `<uuid>.node.skein`, and the fleet as `<fleet>.fleet.skein` for
//! callers that do not know which node they reach. An operator's names `<name>.operator.skein` and a serial.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The authority's certificate is valid this long, in days.
const CA_DAYS: u64 = 3_650;
/// Other certificates are valid this long, in days: long, because they are not renewed by themselves yet.
const LEAF_DAYS: u64 = 1_825;
/// Certificates are valid from this much before they are made, since clocks differ, in seconds.
const BACKDATE_S: u64 = 86_400;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct PkiError {
    what: &'static str,
    why: String,
}

fn error(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |e| PkiError { what, why: e.to_string() }
}

/// Makes keys and certificates. A port, since makers of keys and signatures ask for randomness by themselves.
pub trait Pki: Send + Sync {
    /// Makes a private key, PEM.
    ///
    /// # Errors
    /// When there is no randomness.
    fn make_key(&self) -> Result<Zeroizing<String>, PkiError>;

    /// Makes a certificate request for a key.
    ///
    /// # Errors
    /// When the key is unreadable.
    fn make_csr(&self, key_pem: &str) -> Result<String, PkiError>;

    /// Makes a fleet's certificate authority. `now_s` is Unix time in seconds.
    ///
    /// # Errors
    /// When there is no randomness.
    fn make_ca(&self, fleet: Uuid, now_s: u64) -> Result<KeyAndCert, PkiError>;

    /// Takes up a fleet's authority.
    ///
    /// # Errors
    /// When certificate or key are unreadable.
    fn authority(&self, cert_pem: &str, key_pem: &str) -> Result<Box<dyn Signer>, PkiError>;
}

/// Signs certificate requests with a fleet's authority.
pub trait Signer: Send {
    /// Certifies a node's key.
    ///
    /// # Errors
    /// When the request is not valid.
    fn sign_node(
        &self,
        csr_pem: &str,
        fleet: Uuid,
        uuid: Uuid,
        now_s: u64,
    ) -> Result<String, PkiError>;

    /// Certifies an operator's key.
    ///
    /// # Errors
    /// When the request is not valid.
    fn sign_operator(
        &self,
        csr_pem: &str,
        name: &str,
        serial: Uuid,
        now_s: u64,
    ) -> Result<String, PkiError>;
}

/// X.509 certificates over ECDSA P-256, with randomness from the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct X509;

impl Pki for X509 {
    fn make_key(&self) -> Result<Zeroizing<String>, PkiError> {
        make_key()
    }

    fn make_csr(&self, key_pem: &str) -> Result<String, PkiError> {
        make_csr(key_pem)
    }

    fn make_ca(&self, fleet: Uuid, now_s: u64) -> Result<KeyAndCert, PkiError> {
        make_ca(fleet, now_s)
    }

    fn authority(&self, cert_pem: &str, key_pem: &str) -> Result<Box<dyn Signer>, PkiError> {
        Ok(Box::new(Authority::open(cert_pem, key_pem)?))
    }
}

/// A certificate and its private key, PEM.
pub struct KeyAndCert {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS #8).
    pub key_pem: Zeroizing<String>,
}

/// Who calls, as the connection proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of this machine, through the local socket.
    Local,
    /// A member's daemon.
    Node(Uuid),
    /// A person or program with a certificate.
    Operator {
        /// The name.
        name: String,
        /// Which certificate.
        serial: Uuid,
    },
    /// Nobody known.
    Anonymous,
}

/// Returns the name under which a node's certificate is verified.
pub fn node_name(uuid: Uuid) -> String {
    format!("{uuid}.node.skein")
}

/// Returns the name under which any node of a fleet is verified.
pub fn fleet_name(fleet: Uuid) -> String {
    format!("{fleet}.fleet.skein")
}

/// Makes a fresh private key (ECDSA P-256), PEM.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn make_key() -> Result<Zeroizing<String>, PkiError> {
    let key = KeyPair::generate().map_err(error("no key was made"))?;
    Ok(Zeroizing::new(key.serialize_pem()))
}

fn validity(params: &mut CertificateParams, now_s: u64, days: u64) {
    let at = |s: u64| {
        let day = i64::try_from(s).unwrap_or(i64::MAX);
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(day.unsigned_abs())
    };
    params.not_before = at(now_s.saturating_sub(BACKDATE_S));
    params.not_after = at(now_s + days * 86_400);
}

/// Makes a fleet's certificate authority. `now_s` is Unix time in seconds.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn make_ca(fleet: Uuid, now_s: u64) -> Result<KeyAndCert, PkiError> {
    let key_pem = make_key()?;
    let key = KeyPair::from_pem(&key_pem).map_err(error("the authority's key is unreadable"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("skein fleet {fleet}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now_s, CA_DAYS);
    let cert = params.self_signed(&key).map_err(error("the authority was not made"))?;
    Ok(KeyAndCert { cert_pem: cert.pem(), key_pem })
}

/// Makes a certificate request for a key; names in it are ignored by the signer.
///
/// # Errors
/// When the key is unreadable.
pub fn make_csr(key_pem: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem).map_err(error("the key is unreadable"))?;
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .map_err(error("no certificate request was made"))?;
    csr.pem().map_err(error("no certificate request was made"))
}

/// Signs requests with the fleet's authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Takes up the authority.
    ///
    /// # Errors
    /// When certificate or key are unreadable.
    pub fn open(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(error("the authority's key is unreadable"))?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key)
            .map_err(error("the authority's certificate is unreadable"))?;
        Ok(Self { issuer })
    }

    fn sign(
        &self,
        csr_pem: &str,
        names: Vec<String>,
        server: bool,
        serial: Uuid,
        now_s: u64,
    ) -> Result<String, PkiError> {
        const BAD: &str = "the certificate request is not valid";
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(error(BAD))?;
        // Only the key is taken from the request; what is certified is decided here.
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, names[0].clone());
        let san = |n: &String| n.as_str().try_into().map(SanType::DnsName);
        let names: Result<Vec<SanType>, rcgen::Error> = names.iter().map(san).collect();
        params.subject_alt_names = names.map_err(error(BAD))?;
        params.serial_number = Some(serial.as_bytes().to_vec().into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        validity(&mut params, now_s, LEAF_DAYS);
        csr.params = params;
        let cert = csr.signed_by(&self.issuer).map_err(error("the certificate was not signed"))?;
        Ok(cert.pem())
    }
}

impl Signer for Authority {
    fn sign_node(
        &self,
        csr_pem: &str,
        fleet: Uuid,
        uuid: Uuid,
        now_s: u64,
    ) -> Result<String, PkiError> {
        self.sign(csr_pem, vec![node_name(uuid), fleet_name(fleet)], true, uuid, now_s)
    }

    fn sign_operator(
        &self,
        csr_pem: &str,
        name: &str,
        serial: Uuid,
        now_s: u64,
    ) -> Result<String, PkiError> {
        self.sign(csr_pem, vec![format!("{name}.operator.skein")], false, serial, now_s)
    }
}

/// Returns the SHA-256 of a certificate's DER.
///
/// # Errors
/// When the text holds no certificate.
pub fn fingerprint(cert_pem: &str) -> Result<[u8; 32], PkiError> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|e| PkiError { what: "the certificate is unreadable", why: e.to_string() })?;
    Ok(fingerprint_der(&der))
}

/// Returns the SHA-256 of a certificate.
pub fn fingerprint_der(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// Reads who a verified client certificate belongs to.
pub fn caller(der: &[u8]) -> Caller {
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(der) else {
        return Caller::Anonymous;
    };
    let Ok(Some(san)) = cert.subject_alternative_name() else {
        return Caller::Anonymous;
    };
    let serial = Uuid::from_slice(&padded(cert.raw_serial())).unwrap_or_default();
    for name in &san.value.general_names {
        let x509_parser::extensions::GeneralName::DNSName(name) = name else {
            continue;
        };
        if let Some(uuid) = name.strip_suffix(".node.skein").and_then(|u| u.parse().ok()) {
            return Caller::Node(uuid);
        }
        if let Some(name) = name.strip_suffix(".operator.skein") {
            return Caller::Operator { name: name.to_owned(), serial };
        }
    }
    Caller::Anonymous
}

/// Brings a serial number, which DER writes without leading or with one extra zero, to 16 bytes.
fn padded(raw: &[u8]) -> [u8; 16] {
    let mut out = [0u8; 16];
    let raw = &raw[raw.len().saturating_sub(16)..];
    out[16 - raw.len()..].copy_from_slice(raw);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn der(pem: &str) -> Vec<u8> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    #[test]
    fn a_clock_an_hour_off_on_either_side_refuses_no_fresh_certificate() {
        const HOUR: u64 = 3_600;
        let fleet = Uuid::from_u128(1);
        let ca = make_ca(fleet, NOW).unwrap();
        let authority = Authority::open(&ca.cert_pem, &ca.key_pem).unwrap();
        let csr = make_csr(&make_key().unwrap()).unwrap();
        let node = authority.sign_node(&csr, fleet, Uuid::from_u128(2), NOW).unwrap();
        let operator = authority.sign_operator(&csr, "ann", Uuid::from_u128(3), NOW).unwrap();
        for pem in [ca.cert_pem, node, operator] {
            let der = der(&pem);
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            for seen_at in [NOW - HOUR, NOW, NOW + HOUR] {
                let at = i64::try_from(seen_at).unwrap();
                let at = x509_parser::time::ASN1Time::from_timestamp(at).unwrap();
                assert!(parsed.validity().is_valid_at(at), "{seen_at}");
            }
        }
    }

    #[test]
    fn certificates_name_their_holder_and_nothing_else() {
        let fleet = Uuid::from_u128(1);
        let ca = make_ca(fleet, NOW).unwrap();
        let authority = Authority::open(&ca.cert_pem, &ca.key_pem).unwrap();
        let key = make_key().unwrap();
        let csr = make_csr(&key).unwrap();
        let uuid = Uuid::from_u128(2);
        let node = authority.sign_node(&csr, fleet, uuid, NOW).unwrap();
        assert_eq!(caller(&der(&node)), Caller::Node(uuid));
        for serial in [Uuid::from_u128(3), Uuid::from_u128(u128::MAX)] {
            let op = authority.sign_operator(&csr, "ann", serial, NOW).unwrap();
            assert_eq!(caller(&der(&op)), Caller::Operator { name: "ann".into(), serial });
        }
        assert_eq!(caller(&der(&ca.cert_pem)), Caller::Anonymous);
        assert_eq!(caller(b"junk"), Caller::Anonymous);
        assert!(authority.sign_node("junk", fleet, uuid, NOW).is_err());
        assert_eq!(fingerprint(&ca.cert_pem).unwrap(), fingerprint_der(&der(&ca.cert_pem)));
    }
}
