//! K3s' tokens as text, from files that may hold anything. Pure.

use crate::secret::Secret;

/// The longest text that is taken for a token, in bytes.
const LONGEST: usize = 4096;

/// A token taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The hash of the cluster's certificate authority, in hexadecimal; `None` in the short form.
    pub ca_hash: Option<String>,
    /// The user, empty in the short form.
    pub user: String,
    /// The secret.
    pub secret: Secret,
}

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("the token is empty")]
    Empty,
    /// Not one line of printable characters.
    #[error("the token holds characters that no token has, or is too long")]
    Characters,
    /// `K10` with something else behind than a hash, `::`, and a secret.
    #[error("the token starts as a full one (K10) but does not go on as one")]
    Shape,
}

impl Token {
    /// Reads either form: `K10<sha256>::<user>:<secret>`, or the secret alone.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        let Some(rest) = text.strip_prefix("K10") else {
            return Ok(Self { ca_hash: None, user: String::new(), secret: Secret::new(text) });
        };
        let Some((hash, credentials)) = rest.split_once("::") else {
            return Err(TokenError::Shape);
        };
        if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Shape);
        }
        let (user, secret) = credentials.split_once(':').unwrap_or(("", credentials));
        if secret.is_empty() {
            return Err(TokenError::Shape);
        }
        Ok(Self {
            ca_hash: Some(hash.to_owned()),
            user: user.to_owned(),
            secret: Secret::new(secret),
        })
    }

    /// The text of this token.
    pub fn text(&self) -> Secret {
        match &self.ca_hash {
            Some(hash) => Secret::new(format!("K10{hash}::{}:{}", self.user, self.secret.expose())),
            None => self.secret.clone(),
        }
    }
}

/// The full agent token of a cluster.
///
/// Newer releases write it to `server/agent-token`. Older ones keep the agent secret to themselves, although they accept it
/// with the same hash as in the server token, which is over the same authority: so the hash is taken from there.
pub fn agent_token(
    written: Option<&Secret>,
    server: &Secret,
    secret: Option<&Secret>,
) -> Result<Secret, TokenError> {
    if let Some(written) = written {
        return Token::parse(written.expose()).map(|token| token.text());
    }
    let server = Token::parse(server.expose())?;
    let Some(secret) = secret else {
        return Ok(server.text());
    };
    let secret = Token::parse(secret.expose())?.secret;
    Ok(Token { ca_hash: server.ca_hash, user: "node".to_owned(), secret }.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn reads_both_forms() {
        let full = Token::parse(&format!("K10{HASH}::server:s3:cret\n")).unwrap();
        assert_eq!((full.user.as_str(), full.secret.expose()), ("server", "s3:cret"));
        assert_eq!(full.ca_hash.as_deref(), Some(HASH));
        assert_eq!(Token::parse("plain").unwrap().ca_hash, None);
    }

    #[test]
    fn refuses_hostile_texts() {
        assert_eq!(Token::parse(" \n"), Err(TokenError::Empty));
        for bad in ["a\nb", "a b", "ä", "a\0b", "\u{1b}[2J"] {
            assert_eq!(Token::parse(bad), Err(TokenError::Characters), "{bad:?}");
        }
        assert_eq!(Token::parse(&"x".repeat(LONGEST + 1)), Err(TokenError::Characters));
        for bad in [
            "K10",
            "K10abc::server:x",
            &format!("K10{HASH}"),
            &format!("K10{HASH}::"),
            &format!("K10{HASH}::server:"),
            &format!("K10{HASH}:server:x"),
        ] {
            assert_eq!(Token::parse(bad), Err(TokenError::Shape), "{bad}");
        }
    }

    #[test]
    fn agent_token_is_read_where_written_and_formed_where_not() {
        let server = Secret::new(format!("K10{HASH}::server:top"));
        let written = Secret::new(format!("K10{HASH}::node:low\n"));
        let secret = Secret::new("low");
        let expected = format!("K10{HASH}::node:low");
        assert_eq!(agent_token(Some(&written), &server, Some(&secret)).unwrap().expose(), expected);
        assert_eq!(agent_token(None, &server, Some(&secret)).unwrap().expose(), expected);
        assert_eq!(agent_token(None, &server, None).unwrap(), server);
        assert!(agent_token(None, &Secret::new("K10oops"), Some(&secret)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "\\PC{0,200}|K10[0-9a-f]{64}::[a-z]{0,8}:[!-~]{0,40}") {
            if let Ok(token) = Token::parse(&text) {
                prop_assert_eq!(Token::parse(token.text().expose()), Ok(token));
            }
        }
    }
}
