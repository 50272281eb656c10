//! Stand-ins for keys and certificates: text that names its owner, made of the seed. Whom a connection belongs to is
//! known to the simulated network anyway.

use std::sync::{Mutex, PoisonError};

use api::pki::{KeyAndCert, Pki, PkiError, Signer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::chaos::draw::Draw;

/// The stand-in of one machine.
#[derive(Debug)]
pub struct StandInPki(Mutex<Draw>);

impl StandInPki {
    /// Makes one whose keys come from this stream.
    pub fn new(draw: Draw) -> Self {
        Self(Mutex::new(draw))
    }

    fn key(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        pem("PRIVATE KEY", &hex::encode(bytes))
    }
}

fn pem(label: &str, text: &str) -> String {
    let body = STANDARD.encode(text);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// Signs nothing: it only writes down whom a certificate is for.
struct StandInSigner;

impl Pki for StandInPki {
    fn make_key(&self) -> Result<Zeroizing<String>, PkiError> {
        Ok(Zeroizing::new(self.key()))
    }

    fn make_csr(&self, _: &str) -> Result<String, PkiError> {
        Ok(pem("CERTIFICATE REQUEST", "request"))
    }

    fn make_ca(&self, fleet: Uuid, _: u64) -> Result<KeyAndCert, PkiError> {
        let cert_pem = pem("CERTIFICATE", &format!("authority of {fleet}"));
        Ok(KeyAndCert { cert_pem, key_pem: Zeroizing::new(self.key()) })
    }

    fn authority(&self, _: &str, _: &str) -> Result<Box<dyn Signer>, PkiError> {
        Ok(Box::new(StandInSigner))
    }
}

impl Signer for StandInSigner {
    fn sign_node(&self, _: &str, fleet: Uuid, uuid: Uuid, _: u64) -> Result<String, PkiError> {
        Ok(pem("CERTIFICATE", &format!("node {uuid} of {fleet}")))
    }

    fn sign_operator(&self, _: &str, name: &str, serial: Uuid, _: u64) -> Result<String, PkiError> {
        Ok(pem("CERTIFICATE", &format!("operator {name} {serial}")))
    }
}
