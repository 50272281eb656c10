//! Where a K3s binary comes from, its version, and what that version honours. Pure.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where the K3s binary comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    /// A file on this host. It is copied, so that a later change of it does not matter until K3s is installed anew.
    Path(PathBuf),
    /// A download; the SHA-256 in hexadecimal is checked before it is used.
    Url { url: String, sha256: String },
    /// The release that this version of Skein was built for.
    Pinned,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Url { url, .. } => f.write_str(url),
            Self::Pinned => f.write_str("the pinned release"),
        }
    }
}

/// A K3s version such as `v1.33.5+k3s1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Kubernetes' major number.
    pub major: u32,
    /// Kubernetes' minor number.
    pub minor: u32,
    /// Kubernetes' patch number.
    pub patch: u32,
    /// The whole text, as the binary says it.
    pub text: String,
}

impl Version {
    /// Reads the first version in `text`, such as the output of `k3s --version` or of `/version`'s `gitVersion`.
    pub fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::word)
    }

    fn word(word: &str) -> Option<Self> {
        let bare = word.strip_prefix('v')?;
        let core = bare.split(['+', '-']).next()?;
        let mut parts = core.split('.').map(str::parse::<u32>);
        let (major, minor, patch) = (
            parts.next()?.ok()?,
            parts.next()?.ok()?,
            parts.next()?.ok()?,
        );
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            major,
            minor,
            patch,
            text: word.to_owned(),
        })
    }

    fn at_least(&self, minor: u32, patch: u32) -> bool {
        (self.major, self.minor, self.patch) >= (1, minor, patch)
    }

    /// Whether certificates of the API carry IPv6 addresses; older ones drop them silently.
    pub fn has_ipv6_names(&self) -> bool {
        self.at_least(22, 0)
    }

    /// Whether flannel carries pods of both families.
    pub fn has_dual_stack(&self) -> bool {
        self.at_least(23, 0)
    }

    /// Whether certificate authorities may be given as a chain. Before, Kubernetes' signer takes one certificate only.
    pub fn takes_ca_chain(&self) -> bool {
        match self.minor {
            23 => self.at_least(23, 16),
            24 => self.at_least(24, 10),
            25 => self.at_least(25, 6),
            _ => self.at_least(26, 1),
        }
    }

    /// Whether pods are evicted through `policy/v1`.
    pub fn evicts_with_v1(&self) -> bool {
        self.at_least(22, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The cluster's API address for URLs: IPv6 where the release's certificates carry it, else IPv4.
///
/// An unknown version counts as a current one. `None` only without any address.
pub fn endpoint(vips: &[IpAddr], version: Option<&Version>) -> Option<String> {
    let six = version.is_none_or(Version::has_ipv6_names);
    let preferred = vips.iter().find(|ip| ip.is_ipv6() == six);
    let ip = preferred.or_else(|| vips.first())?;
    Some(match ip {
        IpAddr::V4(four) => format!("https://{four}:6443"),
        IpAddr::V6(six) => format!("https://[{six}]:6443"),
    })
}
