//! Who trusts whom on the wire: rustls configurations, TLS 1.3 with the ring provider.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::pki::fingerprint_der;

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the TLS keys cannot be used: {0}")]
pub struct TlsError(String);

fn error(e: impl std::fmt::Display) -> TlsError {
    TlsError(e.to_string())
}

/// A certificate with its key and authority, PEM: what a member or an operator shows.
#[derive(Clone)]
pub struct Papers {
    /// The holder's certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: zeroize::Zeroizing<String>,
    /// The fleet's authority.
    pub ca_pem: String,
}

impl std::fmt::Debug for Papers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Papers(redacted)")
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert.map_err(error)?).map_err(error)?;
    }
    Ok(roots)
}

impl Papers {
    /// The leaf and the authority: the latter goes along, so that joiners can check its fingerprint.
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let both = format!("{}\n{}", self.cert_pem, self.ca_pem);
        CertificateDer::pem_slice_iter(both.as_bytes()).collect::<Result<_, _>>().map_err(error)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(error)
    }

    /// Makes the server's side: clients may show a certificate of the fleet, or none.
    ///
    /// # Errors
    /// When the papers are unreadable.
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.ca_pem)?), provider())
                .allow_unauthenticated()
                .build()
                .map_err(error)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(error)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.key()?)
            .map_err(error)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// Makes a client's side: it shows its certificate and accepts only servers of the fleet.
    ///
    /// # Errors
    /// When the papers are unreadable.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(error)?
            .with_root_certificates(roots(&self.ca_pem)?)
            .with_client_auth_cert(self.chain()?, self.key()?)
            .map_err(error)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Makes a joiner's side: it knows nothing but the fingerprint of the fleet's authority.
///
/// # Errors
/// When the provider does not fit.
pub fn join_client(fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Pinned { fingerprint, provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts a server only if the authority in its chain has the pinned fingerprint and issued its certificate.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|c| fingerprint_der(c) == self.fingerprint);
        let authority =
            authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
