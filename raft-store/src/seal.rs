//! Sealing of secrets: XChaCha20-Poly1305 under the fleet's key, and boxes that hand this key to one node. Pure.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::model::{PublicKey, Sealed};

/// Bytes that must not be shown: wiped on drop, redacted in `Debug`.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes `bytes` into custody.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Shows the bytes to the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The key under which every secret in replicated state is sealed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct FleetKey([u8; 32]);

impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKey(redacted)")
    }
}

/// Why something sealed could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The bytes are too short to be a sealed value.
    #[error("the sealed value is cut off")]
    Short,
    /// The tag does not match: another key, another purpose, or changed bytes.
    #[error("the sealed value does not open with this key for this purpose")]
    Refused,
}

const NONCE: usize = 24;

impl FleetKey {
    /// Makes the key from 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Seals `plain` for `purpose`; `nonce` must be random and fresh (draft-irtf-cfrg-xchacha, section 2).
    pub fn seal(&self, purpose: &str, plain: &[u8], nonce: [u8; NONCE]) -> Sealed {
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&self.0));
        let payload = Payload { msg: plain, aad: purpose.as_bytes() };
        let body = cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .expect("XChaCha20-Poly1305 seals anything below 256 GiB");
        let mut out = nonce.to_vec();
        out.extend_from_slice(&body);
        Sealed(out)
    }

    /// Opens what [`FleetKey::seal`] made for the same purpose.
    ///
    /// # Errors
    /// When the bytes are cut off, changed, or sealed with another key or purpose.
    pub fn open(&self, purpose: &str, sealed: &Sealed) -> Result<Secret, OpenError> {
        let (nonce, body) = sealed.0.split_at_checked(NONCE).ok_or(OpenError::Short)?;
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&self.0));
        cipher
            .decrypt(XNonce::from_slice(nonce), Payload { msg: body, aad: purpose.as_bytes() })
            .map(Secret::new)
            .map_err(|_| OpenError::Refused)
    }

    /// Puts the key into a box that only the owner of `to` can open.
    ///
    /// The form is libsodium's sealed box without its own random source: an ephemeral key made
    /// from `ephemeral` (32 random bytes), then XSalsa20-Poly1305 to `to`.
    pub fn boxed(&self, to: &PublicKey, ephemeral: [u8; 32], nonce: [u8; NONCE]) -> Sealed {
        let secret = crypto_box::SecretKey::from(ephemeral);
        let public = secret.public_key();
        let cipher = crypto_box::SalsaBox::new(&crypto_box::PublicKey::from(to.0), &secret);
        let body =
            Aead::encrypt(&cipher, &nonce.into(), &self.0[..]).expect("a 32-byte key always fits");
        Sealed([public.as_bytes().as_slice(), &nonce, &body].concat())
    }

    /// Opens a box made for the owner of `secret`.
    ///
    /// # Errors
    /// When the box is cut off, changed, or made for somebody else.
    pub fn unbox(boxed: &Sealed, secret: &[u8; 32]) -> Result<Self, OpenError> {
        let (public, rest) = boxed.0.split_at_checked(32).ok_or(OpenError::Short)?;
        let (nonce, body) = rest.split_at_checked(NONCE).ok_or(OpenError::Short)?;
        let public: [u8; 32] = public.try_into().map_err(|_| OpenError::Short)?;
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| OpenError::Short)?;
        let cipher = crypto_box::SalsaBox::new(
            &crypto_box::PublicKey::from(public),
            &crypto_box::SecretKey::from(*secret),
        );
        let mut plain =
            Aead::decrypt(&cipher, &nonce.into(), body).map_err(|_| OpenError::Refused)?;
        let key: Result<[u8; 32], _> = plain.as_slice().try_into();
        plain.zeroize();
        key.map(Self).map_err(|_| OpenError::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_for_its_purpose_and_key() {
        let key = FleetKey::from_bytes([7; 32]);
        let sealed = key.seal("ca-key", b"hush", [1; 24]);
        assert_eq!(key.open("ca-key", &sealed).unwrap().expose(), b"hush");
        assert_eq!(key.open("token", &sealed), Err(OpenError::Refused));
        assert_eq!(FleetKey::from_bytes([8; 32]).open("ca-key", &sealed), Err(OpenError::Refused));
        assert_eq!(key.open("ca-key", &Sealed(vec![0; 5])), Err(OpenError::Short));
        assert!(!sealed.0.windows(4).any(|w| w == b"hush"));
    }

    #[test]
    fn a_box_opens_for_its_addressee_alone() {
        let key = FleetKey::from_bytes([9; 32]);
        let mine = crypto_box::SecretKey::from([3; 32]);
        let boxed = key.boxed(&PublicKey(*mine.public_key().as_bytes()), [4; 32], [5; 24]);
        assert_eq!(FleetKey::unbox(&boxed, &mine.to_bytes()).unwrap().0, key.0);
        assert!(FleetKey::unbox(&boxed, &[6; 32]).is_err());
        for cut in 0..boxed.0.len() {
            assert!(FleetKey::unbox(&Sealed(boxed.0[..cut].to_vec()), &mine.to_bytes()).is_err());
        }
    }
}
