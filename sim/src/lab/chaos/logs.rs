//! What a daemon's log must not say. Pure.

use super::checks::Found;
use crate::chaos::invariant::no_secret::NoSecret;

/// Looks through a log.
///
/// # Errors
/// The first line that tells of a panic, or has a secret.
pub(super) fn look(host: &str, log: &str, secrets: &NoSecret) -> Result<(), Found> {
    for line in log.lines() {
        if line.contains("panicked at") {
            return Err(("no_panic", format!("the log of {host} says: {line}")));
        }
        secrets.look(line).map_err(|told| ("no_secret", format!("the log of {host}: {told}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_secrets_are_found_and_the_secret_is_not_repeated() {
        let mut secrets = NoSecret::default();
        secrets.learn("0123456789abcdef");
        assert_eq!(look("n1", "all is well\n", &secrets), Ok(()));
        let panic = look("n1", "x\nthread 'main' panicked at a.rs:1\n", &secrets);
        assert_eq!(panic.map_err(|(name, _)| name), Err("no_panic"));
        let (name, why) = look("n1", "ticket 0123456789abcdef!\n", &secrets).unwrap_err();
        assert_eq!(name, "no_secret");
        assert!(!why.contains("0123456789abcdef"), "{why}");
    }
}
