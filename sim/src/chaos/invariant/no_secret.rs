//! No secret stands in a line of the log or in an event: both are kept and shown widely. Pure.

use std::collections::BTreeMap;

use memchr::memmem::Finder;

use super::{Applied, Invariant};

/// Shorter texts are found by chance.
const LENGTH_MIN: usize = 16;

/// See the module.
#[derive(Default)]
pub struct NoSecret {
    /// Each with what finds it: every line of every daemon is looked through.
    secrets: BTreeMap<String, Finder<'static>>,
    looked: u64,
}

impl NoSecret {
    /// Learns a secret.
    pub fn learn(&mut self, secret: &str) {
        if secret.len() >= LENGTH_MIN && !self.secrets.contains_key(secret) {
            let finder = Finder::new(secret).into_owned();
            self.secrets.insert(secret.to_owned(), finder);
        }
    }

    /// Looks at a text.
    ///
    /// # Errors
    /// When a secret is in it; the secret itself is not repeated.
    pub fn look(&self, text: &str) -> Result<(), String> {
        match self.secrets.iter().find(|(_, finder)| finder.find(text.as_bytes()).is_some()) {
            Some((found, _)) => Err(text.replace(found.as_str(), "(the secret)")),
            None => Ok(()),
        }
    }
}

impl Invariant for NoSecret {
    fn name(&self) -> &'static str {
        "no_secret"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        for event in a.state.events.after(self.looked) {
            self.look(&event.payload.to_string())?;
        }
        self.looked = a.index.max(self.looked);
        Ok(())
    }
}
