//! Join tickets as one line of text: who to ask, whom to trust, and the secret. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroize;

const PREFIX: &str = "skein1.";
/// The most endpoints that a ticket names.
pub const ENDPOINTS_MAX: usize = 8;

/// An invitation: holders of it may become members.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTicket {
    /// The fleet.
    #[serde(rename = "f")]
    pub fleet: Uuid,
    /// The ticket's number.
    #[serde(rename = "i")]
    pub id: u64,
    /// What proves that it was handed out; the fleet knows only its digest.
    #[serde(rename = "s", with = "bytes32")]
    pub secret: [u8; 32],
    /// SHA-256 of the authority's certificate (DER): nothing is sent to anybody else.
    #[serde(rename = "c", with = "bytes32")]
    pub fingerprint: [u8; 32],
    /// Where members are reached.
    #[serde(rename = "e")]
    pub endpoints: Vec<SocketAddr>,
}

impl Drop for JoinTicket {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for JoinTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTicket")
            .field("id", &self.id)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// Why a text is no ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin as tickets do.
    #[error("this is no ticket: tickets begin with `skein1.`")]
    Foreign,
    /// It was made by another version.
    #[error("this ticket was made by a newer skein: upgrade this machine's skein")]
    Newer,
    /// Characters are missing or changed.
    #[error("the ticket is not whole: some of it was lost while copying; paste the whole line")]
    Damaged,
}

impl fmt::Display for JoinTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum[..4]);
        let text = URL_SAFE_NO_PAD.encode(&bytes);
        bytes.zeroize();
        write!(f, "{PREFIX}{text}")
    }
}

impl FromStr for JoinTicket {
    type Err = TicketError;

    fn from_str(s: &str) -> Result<Self, TicketError> {
        let s: String = s.chars().filter(|c| !c.is_whitespace()).collect();
        let Some(body) = s.strip_prefix(PREFIX) else {
            let other_version = s
                .strip_prefix("skein")
                .is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
            return Err(if other_version { TicketError::Newer } else { TicketError::Foreign });
        };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TicketError::Damaged)?;
        let cut = bytes.len().checked_sub(4).ok_or(TicketError::Damaged)?;
        let (json, sum) = bytes.split_at(cut);
        if Sha256::digest(json)[..4] != *sum {
            return Err(TicketError::Damaged);
        }
        let ticket: Self = serde_json::from_slice(json).map_err(|_| TicketError::Newer)?;
        Ok(ticket)
    }
}

mod bytes32 {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(b: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&URL_SAFE_NO_PAD.encode(b))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(serde::de::Error::custom)?;
        bytes.try_into().map_err(|_| serde::de::Error::custom("32 bytes are wanted"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> JoinTicket {
        JoinTicket {
            fleet: Uuid::from_u128(5),
            id: 12,
            secret: [7; 32],
            fingerprint: [9; 32],
            endpoints: vec!["10.0.0.1:7443".parse().unwrap(), "[fd00::1]:7443".parse().unwrap()],
        }
    }

    #[test]
    fn a_ticket_survives_the_clipboard() {
        let text = ticket().to_string();
        assert!(!text.contains(char::is_whitespace));
        assert_eq!(text.parse::<JoinTicket>().unwrap(), ticket());
        let wrapped = format!(" {}\n{} ", &text[..40], &text[40..]);
        assert_eq!(wrapped.parse::<JoinTicket>().unwrap(), ticket());
        assert!(!format!("{:?}", ticket()).contains("7, 7"));
    }

    #[test]
    fn every_cut_is_noticed() {
        let text = ticket().to_string();
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<JoinTicket>().is_err(), "{cut}");
        }
        assert_eq!("hello".parse::<JoinTicket>(), Err(TicketError::Foreign));
        assert_eq!("skein2.abc".parse::<JoinTicket>(), Err(TicketError::Newer));
        assert_eq!(text[..text.len() - 3].parse::<JoinTicket>(), Err(TicketError::Damaged));
    }
}
