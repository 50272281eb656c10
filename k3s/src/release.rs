//! Where a K3s binary comes from, its version, and what that version honours. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where the K3s binary comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    /// A file on this host. It is copied, so that a later change of it does not matter until K3s is installed anew.
    /// With a SHA-256, the copy is checked before it is used.
    Path { path: PathBuf, sha256: Option<String> },
    /// A download; the SHA-256 in hexadecimal is checked before it is used.
    Url { url: String, sha256: String },
    /// The release that this version of Skein was built for.
    Pinned,
}

impl Release {
    /// A file on this host that is taken as it is.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::Path { path: path.into(), sha256: None }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, .. } => write!(f, "{}", path.display()),
            Self::Url { url, .. } => f.write_str(url),
            Self::Pinned => f.write_str("the pinned release"),
        }
    }
}

/// The oldest minor release of Kubernetes 1 that Skein runs.
pub const OLDEST_MINOR: u32 = 21;

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
        let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self { major, minor, patch, text: word.to_owned() })
    }

    /// Whether Skein can run it: before, one etcd for several servers and both families of addresses do not work.
    pub fn is_usable(&self) -> bool {
        self.at_least(OLDEST_MINOR, 0)
    }

    fn at_least(&self, minor: u32, patch: u32) -> bool {
        (self.major, self.minor, self.patch) >= (1, minor, patch)
    }

    /// Whether certificates of the API carry IPv6 addresses; older ones drop them silently.
    pub fn has_ipv6_names(&self) -> bool {
        self.at_least(22, 0)
    }

    /// Whether flannel carries pods of both families well enough to rely on.
    pub fn has_dual_stack(&self) -> bool {
        self.at_least(23, 7)
    }

    /// Whether certificate authorities may be given as a chain. Before, Kubernetes' signer takes one certificate only.
    pub fn takes_ca_chain(&self) -> bool {
        match self.minor {
            23 => self.at_least(23, 17),
            24 => self.at_least(24, 11),
            25 => self.at_least(25, 7),
            _ => self.at_least(26, 2),
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

/// The pinned release. Its hashes stand in the release's own `sha256sum-amd64.txt` and `sha256sum-arm64.txt`.
const PINNED_VERSION: &str = "v1.36.4+k3s1";
const PINNED: [(&str, &str, &str); 2] = [
    ("x86_64", "k3s", "835873f37245fc615f547a2fe2af9402a347875f13fa64a1f136de644955ea3f"),
    ("aarch64", "k3s-arm64", "c920706346d5ad4e5cd3c7bf1bb09ce71ebe07fec829e513e40f1caf98aed8bb"),
];

/// The pinned release for a machine of `arch` (as Rust names it), `None` where there is none.
pub fn pinned(arch: &str) -> Option<Release> {
    let (_, asset, sha256) = PINNED.iter().find(|(known, _, _)| *known == arch)?;
    let tag = PINNED_VERSION.replace('+', "%2B");
    let url = format!("https://github.com/k3s-io/k3s/releases/download/{tag}/{asset}");
    Some(Release::Url { url, sha256: (*sha256).to_owned() })
}

/// The flags that a `--help` text lists, without dashes. Real releases differ in them.
pub fn flags(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    let flag = |line: &str| -> Option<String> {
        let word = line.split_whitespace().find(|word| word.starts_with("--"))?;
        let name: &str = word.trim_start_matches('-').split(['=', ',']).next()?;
        let plain = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain.then(|| name.to_owned())
    };
    lines.filter_map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_as_k3s_says_them() {
        let version =
            Version::parse("k3s version v1.21.2+k3s1 (5a67e8dc)\ngo version go1.16.4\n").unwrap();
        assert_eq!(
            (version.major, version.minor, version.patch, version.text.as_str()),
            (1, 21, 2, "v1.21.2+k3s1")
        );
        assert_eq!(Version::parse("v1.34.4+lab1").unwrap().minor, 34);
        assert_eq!(Version::parse("v1.35.0-rc1+k3s1").unwrap().patch, 0);
        for bad in ["", "go1.16", "v1", "v1.2", "v1.2.x", "v1.2.3.4", "version"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn too_old_releases_are_told() {
        let usable = |text| Version::parse(text).unwrap().is_usable();
        assert!(!usable("v1.18.20+k3s1") && !usable("v1.20.15+k3s1") && !usable("v0.9.1"));
        assert!(usable("v1.21.0+k3s1") && usable("v1.34.4+k3s1"));
    }

    #[test]
    fn old_releases_get_what_they_honour() {
        let of = |text| Version::parse(text).unwrap();
        for (text, six, dual, chain) in [
            ("v1.21.2+k3s1", false, false, false),
            ("v1.22.9+k3s1", true, false, false),
            ("v1.22.17+k3s1", true, false, false),
            ("v1.23.6+k3s1", true, false, false),
            ("v1.23.7+k3s1", true, true, false),
            ("v1.23.16+k3s1", true, true, false),
            ("v1.23.17+k3s1", true, true, true),
            ("v1.24.10+k3s1", true, true, false),
            ("v1.24.11+k3s1", true, true, true),
            ("v1.25.6+k3s1", true, true, false),
            ("v1.25.7+k3s1", true, true, true),
            ("v1.26.1+k3s1", true, true, false),
            ("v1.26.2+k3s1", true, true, true),
            ("v1.27.1+k3s1", true, true, true),
            ("v1.34.4+k3s1", true, true, true),
        ] {
            let version = of(text);
            assert_eq!(
                (version.has_ipv6_names(), version.has_dual_stack(), version.takes_ca_chain()),
                (six, dual, chain),
                "{text}"
            );
        }
    }

    #[test]
    fn endpoint_has_a_family_that_certificates_carry() {
        let vips: Vec<IpAddr> = vec!["fd00::100".parse().unwrap(), "10.7.0.100".parse().unwrap()];
        let old = Version::parse("v1.21.2+k3s1");
        assert_eq!(endpoint(&vips, old.as_ref()).as_deref(), Some("https://10.7.0.100:6443"));
        assert_eq!(endpoint(&vips, None).as_deref(), Some("https://[fd00::100]:6443"));
        assert_eq!(endpoint(&vips[1..], None).as_deref(), Some("https://10.7.0.100:6443"));
        assert_eq!(endpoint(&[], None), None);
    }

    #[test]
    fn flags_are_read_from_both_kinds_of_help() {
        let help = "OPTIONS:\n   --config FILE, -c FILE    (config) Load from FILE (default: \"/etc\") [$K3S_CONFIG_FILE]\n   --cluster-init   (cluster) with --server it fails\n  -t, --token string   \n      --etcd-arg=x\nUsage --no\n";
        let found: Vec<String> = flags(help).into_iter().collect();
        assert_eq!(found, ["cluster-init", "config", "etcd-arg", "token"]);
    }

    #[test]
    fn pinned_release_has_a_hash_for_each_machine() {
        for (arch, asset) in [("x86_64", "/k3s"), ("aarch64", "/k3s-arm64")] {
            let Some(Release::Url { url, sha256 }) = pinned(arch) else { panic!("{arch}") };
            assert!(url.ends_with(asset) && sha256.len() == 64);
        }
        assert_eq!(pinned("riscv64"), None);
    }
}
