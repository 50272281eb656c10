//! Kubeconfigs as text: handed out under another address and name, merged into a person's own. Pure.

use serde_norway::{Mapping, Value};

use crate::secret::Secret;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KubeconfigError {
    /// Not YAML, or not shaped like a kubeconfig.
    #[error("not a kubeconfig: {0}")]
    Shape(String),
    /// The reader's own file cannot be changed safely.
    #[error("the existing kubeconfig is left alone because it cannot be read: {0}")]
    Existing(String),
}

/// K3s' admin kubeconfig with `server_url` as server, and cluster, context and user called `name`.
pub fn kubeconfig_for(
    kubeconfig: &Secret,
    server_url: &str,
    name: &str,
) -> Result<Secret, KubeconfigError> {
    let mut root = parse(kubeconfig.expose()).map_err(KubeconfigError::Shape)?;
    let context =
        current(&root).ok_or_else(|| KubeconfigError::Shape("it names no context".into()))?;
    for (list, inner) in [("clusters", "cluster"), ("users", "user"), ("contexts", "context")] {
        let wanted = match list {
            "clusters" => context.0.as_str(),
            "users" => context.1.as_str(),
            _ => context.2.as_str(),
        };
        let mut entry = take(&mut root, list, wanted).ok_or_else(|| {
            KubeconfigError::Shape(format!("`{list}` has no entry called {wanted}"))
        })?;
        entry.insert("name".into(), name.into());
        let Some(Value::Mapping(body)) = entry.get_mut(inner) else {
            return Err(KubeconfigError::Shape(format!("an entry of `{list}` has no `{inner}`")));
        };
        match list {
            "clusters" => {
                body.insert("server".into(), server_url.into());
            }
            "contexts" => {
                body.insert("cluster".into(), name.into());
                body.insert("user".into(), name.into());
            }
            _ => {}
        }
        root.insert(list.into(), Value::Sequence(vec![Value::Mapping(entry)]));
    }
    root.insert("current-context".into(), name.into());
    write(&root).map(Secret::new)
}

/// `addition` laid into `existing` (the text of `~/.kube/config`, empty where there is none): entries of the same name are
/// replaced, all others stay, and the current context becomes that of `addition`.
pub fn merge_kubeconfig(existing: &str, addition: &Secret) -> Result<Secret, KubeconfigError> {
    let new = parse(addition.expose()).map_err(KubeconfigError::Shape)?;
    let mut root = if existing.trim().is_empty() {
        Mapping::new()
    } else {
        parse(existing).map_err(KubeconfigError::Existing)?
    };
    root.entry("apiVersion".into()).or_insert("v1".into());
    root.entry("kind".into()).or_insert("Config".into());
    for list in ["clusters", "users", "contexts"] {
        let mut entries = match root.get(list).cloned() {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Sequence(entries)) => entries,
            Some(_) => return Err(KubeconfigError::Existing(format!("`{list}` is not a list"))),
        };
        for entry in sequence(&new, list) {
            let same = entries.iter().position(|old| name_of(old) == name_of(entry));
            match same {
                Some(at) => entries[at] = entry.clone(),
                None => entries.push(entry.clone()),
            }
        }
        root.insert(list.into(), Value::Sequence(entries));
    }
    if let Some(context) = new.get("current-context") {
        root.insert("current-context".into(), context.clone());
    }
    write(&root).map(Secret::new)
}

/// What a client needs to know from a kubeconfig.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// The API's address.
    pub server: String,
    /// Trusted certificates, in PEM.
    pub ca: Material,
    /// The client's certificate.
    pub certificate: Material,
    /// The client's key.
    pub key: Material,
}

/// Something given in the file itself or by path.
#[derive(Debug, Clone, PartialEq)]
pub enum Material {
    /// In base64.
    Inline(Secret),
    /// In a file.
    File(std::path::PathBuf),
}

/// Reads the current context of a kubeconfig with client certificates.
pub fn access(kubeconfig: &str) -> Result<Access, KubeconfigError> {
    let mut root = parse(kubeconfig).map_err(KubeconfigError::Shape)?;
    let (cluster, user, _) =
        current(&root).ok_or_else(|| KubeconfigError::Shape("it names no context".into()))?;
    let cluster = body(&mut root, "clusters", &cluster, "cluster")?;
    let user = body(&mut root, "users", &user, "user")?;
    let server = cluster.get("server").and_then(Value::as_str).unwrap_or_default().to_owned();
    if server.is_empty() {
        return Err(KubeconfigError::Shape("the cluster has no server".into()));
    }
    Ok(Access {
        server,
        ca: material(&cluster, "certificate-authority")?,
        certificate: material(&user, "client-certificate")?,
        key: material(&user, "client-key")?,
    })
}

fn body(
    root: &mut Mapping,
    list: &str,
    name: &str,
    inner: &str,
) -> Result<Mapping, KubeconfigError> {
    let missing = || KubeconfigError::Shape(format!("`{list}` has no entry called {name}"));
    let mut entry = take(root, list, name).ok_or_else(missing)?;
    match entry.remove(inner) {
        Some(Value::Mapping(found)) => Ok(found),
        _ => Err(missing()),
    }
}

fn material(from: &Mapping, key: &str) -> Result<Material, KubeconfigError> {
    let text = |name: &str| from.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(inline) = text(&format!("{key}-data")) {
        return Ok(Material::Inline(Secret::new(inline)));
    }
    text(key)
        .map(|path| Material::File(path.into()))
        .ok_or_else(|| KubeconfigError::Shape(format!("no `{key}`")))
}

fn parse(text: &str) -> Result<Mapping, String> {
    match serde_norway::from_str(text) {
        Ok(Value::Mapping(root)) => Ok(root),
        Ok(_) => Err("it is not a mapping".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn write(root: &Mapping) -> Result<String, KubeconfigError> {
    serde_norway::to_string(root).map_err(|error| KubeconfigError::Shape(error.to_string()))
}

fn sequence<'a>(root: &'a Mapping, list: &str) -> &'a [Value] {
    root.get(list).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.get("name").and_then(Value::as_str)
}

fn take(root: &mut Mapping, list: &str, name: &str) -> Option<Mapping> {
    sequence(root, list)
        .iter()
        .find(|entry| name_of(entry) == Some(name))
        .and_then(Value::as_mapping)
        .cloned()
}

/// Cluster, user and name of the current context, or of the first.
fn current(root: &Mapping) -> Option<(String, String, String)> {
    let contexts = sequence(root, "contexts");
    let named = root.get("current-context").and_then(Value::as_str);
    let entry =
        contexts.iter().find(|entry| name_of(entry) == named).or_else(|| contexts.first())?;
    let inner = entry.get("context")?;
    let text = |key: &str| inner.get(key).and_then(Value::as_str).map(str::to_owned);
    Some((text("cluster")?, text("user")?, name_of(entry)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const K3S: &str = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Q0E=\n    server: https://127.0.0.1:6443\n  name: default\ncontexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\nkind: Config\npreferences: {}\nusers:\n- name: default\n  user:\n    client-certificate-data: Q0VSVA==\n    client-key-data: S0VZ\n";

    #[test]
    fn hands_out_under_another_address_and_name() {
        let given = kubeconfig_for(&Secret::new(K3S), "https://[fd00::100]:6443", "lab").unwrap();
        let read = access(given.expose()).unwrap();
        assert_eq!(read.server, "https://[fd00::100]:6443");
        assert_eq!(read.key, Material::Inline(Secret::new("S0VZ")));
        assert!(given.expose().contains("current-context: lab"));
        assert!(!given.expose().contains("default"));
    }

    #[test]
    fn merges_into_a_persons_own_file_without_loss() {
        let mine = "apiVersion: v1\nkind: Config\nclusters:\n- name: work\n  cluster: {server: 'https://w', extra: 1}\ncontexts:\n- name: work\n  context: {cluster: work, user: me, namespace: x}\nusers:\n- name: me\n  user: {token: t}\ncurrent-context: work\nextensions: [1]\n";
        let lab = kubeconfig_for(&Secret::new(K3S), "https://10.0.0.1:6443", "lab").unwrap();
        let once = merge_kubeconfig(mine, &lab).unwrap();
        let twice = merge_kubeconfig(once.expose(), &lab).unwrap();
        assert_eq!(once, twice, "merging again changes nothing");
        let root = parse(once.expose()).unwrap();
        let before = parse(mine).unwrap();
        assert_eq!(sequence(&root, "users").len(), 2);
        assert_eq!(sequence(&root, "clusters")[0], sequence(&before, "clusters")[0]);
        assert_eq!(root.get("extensions"), before.get("extensions"));
        assert_eq!(root.get("current-context").and_then(Value::as_str), Some("lab"));
        assert_eq!(
            merge_kubeconfig("", &lab).map(|m| access(m.expose()).unwrap().server).unwrap(),
            "https://10.0.0.1:6443"
        );
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let lab = kubeconfig_for(&Secret::new(K3S), "https://10.0.0.1:6443", "lab").unwrap();
        assert!(matches!(
            merge_kubeconfig("clusters: 7\n", &lab),
            Err(KubeconfigError::Existing(_))
        ));
        assert!(matches!(merge_kubeconfig(": : :\n\t", &lab), Err(KubeconfigError::Existing(_))));
        for bad in [
            "",
            "[]",
            "a: b",
            "contexts: [{name: x}]",
            "contexts: [{name: x, context: {cluster: c, user: u}}]",
        ] {
            assert!(
                matches!(
                    kubeconfig_for(&Secret::new(bad), "u", "n"),
                    Err(KubeconfigError::Shape(_))
                ),
                "{bad}"
            );
            assert!(access(bad).is_err());
        }
    }
}
