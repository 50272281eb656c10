//! K3s' options as the rehearsal reads them: environment, configuration files, flags. Shell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_norway::Value;

/// Every option with its values.
pub(super) struct Options {
    values: BTreeMap<String, Vec<String>>,
    /// Whether this is a server.
    pub(super) is_server: bool,
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Sequence(items) => items.iter().flat_map(texts).collect(),
        Value::String(s) => s.split(',').map(str::to_owned).collect(),
        Value::Bool(b) => vec![b.to_string()],
        Value::Number(n) => vec![n.to_string()],
        _ => Vec::new(),
    }
}

fn file(values: &mut BTreeMap<String, Vec<String>>, path: &Path) -> Result<(), String> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(());
    };
    let map: BTreeMap<String, Value> =
        serde_norway::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    for (key, value) in map {
        values.insert(key.trim_end_matches('+').to_owned(), texts(&value));
    }
    Ok(())
}

impl Options {
    /// Reads them; flags win over files, files over the environment.
    pub(super) fn read(is_server: bool, args: &[String]) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for (variable, key) in [
            ("K3S_URL", "server"),
            ("K3S_TOKEN", "token"),
            ("K3S_AGENT_TOKEN", "agent-token"),
            ("K3S_NODE_NAME", "node-name"),
        ] {
            if let Ok(value) = std::env::var(variable) {
                values.insert(key.to_owned(), vec![value]);
            }
        }
        let main = std::env::var("K3S_CONFIG_FILE")
            .unwrap_or_else(|_| "/etc/rancher/k3s/config.yaml".into());
        file(&mut values, Path::new(&main))?;
        let mut parts: Vec<PathBuf> = std::fs::read_dir(format!("{main}.d"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "yaml" || x == "yml"))
            .collect();
        parts.sort();
        for part in parts {
            file(&mut values, &part)?;
        }
        let mut args = args.iter().peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                return Err(format!("k3s rehearsal: stray argument {arg:?}"));
            };
            let (key, value) = match flag.split_once('=') {
                Some((k, v)) => (k, v.to_owned()),
                None if args.peek().is_some_and(|n| !n.starts_with("--")) => {
                    (flag, args.next().cloned().unwrap_or_default())
                }
                None => (flag, "true".into()),
            };
            values.entry(key.to_owned()).or_insert_with(Vec::new).push(value);
        }
        Ok(Self { values, is_server })
    }

    /// Returns an option's first value.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.first().map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Returns all of an option's values.
    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.values.get(key).cloned().unwrap_or_default()
    }

    /// Returns K3s' data folder.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.get("data-dir").unwrap_or("/var/lib/rancher/k3s").into()
    }

    /// Returns the node's name.
    pub(super) fn node_name(&self) -> String {
        let host = || nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        self.get("node-name").map_or_else(host, str::to_owned)
    }
}
