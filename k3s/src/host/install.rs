//! Binaries: copied or downloaded, checked, and asked what they are. Shell.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::command::{must, run};
use super::files;
use crate::observe::{Binary, Installed};
use crate::release::{OLDEST_MINOR, Release, Version, flags, pinned};

/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a download may stand still.
const STALL: Duration = Duration::from_secs(30);

/// The installed binary, as noted beside it.
#[derive(Serialize, Deserialize)]
struct Note {
    release: String,
    path: PathBuf,
    sha256: String,
    version: String,
    server_flags: BTreeSet<String>,
    agent_flags: BTreeSet<String>,
}

type Progress = Arc<Mutex<String>>;

/// A fetch under way.
struct Task {
    release: Release,
    progress: Progress,
    handle: JoinHandle<Result<(), String>>,
}

/// The last fetch, if it failed.
struct Failed {
    release: Release,
    error: String,
    times: u32,
    next_try: Instant,
}

/// The one fetch under way, and the memory of failures.
#[derive(Default)]
pub(super) struct Fetcher {
    task: Option<Task>,
    failed: Option<Failed>,
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.handle.abort();
        }
    }
}

impl Fetcher {
    /// Starts fetching `release` into `folder`, unless that is under way.
    #[expect(
        clippy::disallowed_methods,
        reason = "the task is owned here, and ended when this value goes"
    )]
    pub(super) fn start(&mut self, release: &Release, folder: &Path) {
        if let Some(task) = &self.task {
            if task.release == *release {
                return;
            }
            task.handle.abort();
        }
        let progress: Progress = Arc::new(Mutex::new("starting".to_owned()));
        let handle = tokio::spawn(fetch(release.clone(), folder.to_owned(), Arc::clone(&progress)));
        self.task = Some(Task { release: release.clone(), progress, handle });
    }

    /// Where the binary of `release` is on its way, as of `now`.
    pub(super) fn look(&mut self, release: &Release, folder: &Path, now: Instant) -> Binary {
        if self.task.as_ref().is_some_and(|task| task.handle.is_finished())
            && let Some(task) = self.task.take()
        {
            self.failed = ended(task).map(|(failed, error)| {
                let times = self
                    .failed
                    .as_ref()
                    .filter(|last| last.release == failed)
                    .map_or(0, |last| last.times)
                    + 1;
                let pause = Duration::from_secs(1 << times.min(6)).min(PAUSE_MAX);
                Failed { release: failed, error, times, next_try: now + pause }
            });
        }
        if let Some(task) = self.task.as_ref().filter(|task| task.release == *release) {
            let progress = task.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Binary::Fetching { progress };
        }
        if let Some(binary) = installed(release, folder) {
            return Binary::Present(Box::new(binary));
        }
        let failed = self.failed.as_ref().filter(|failed| failed.release == *release);
        Binary::Missing {
            last_error: failed.map(|failed| failed.error.clone()),
            next_try: failed.map(|failed| failed.next_try),
        }
    }
}

/// The error of a task that has ended, `None` where it went well.
fn ended(task: Task) -> Option<(Release, String)> {
    let error = match futures::FutureExt::now_or_never(task.handle) {
        Some(Ok(Ok(()))) => return None,
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.to_string(),
        None => "it was given up".to_owned(),
    };
    Some((task.release, error))
}

/// What a note says about `release`, if the binary is still there.
fn installed(release: &Release, folder: &Path) -> Option<Installed> {
    let note: Note =
        serde_json::from_str(&files::read(&folder.join("current.json")).ok()??).ok()?;
    let usable = note.release == key(release) && note.path.is_file();
    let version = Version::parse(&note.version).filter(|_| usable)?;
    Some(Installed {
        path: note.path,
        sha256: note.sha256,
        version,
        server_flags: note.server_flags,
        agent_flags: note.agent_flags,
    })
}

fn key(release: &Release) -> String {
    match release {
        Release::Path { path, sha256: None } => format!("path {}", path.display()),
        Release::Path { path, sha256: Some(sha256) } => {
            format!("path {} {}", path.display(), sha256.to_ascii_lowercase())
        }
        Release::Url { url, sha256 } => format!("url {url} {}", sha256.to_ascii_lowercase()),
        Release::Pinned => match pinned(std::env::consts::ARCH) {
            Some(release) => key(&release),
            None => "pinned".to_owned(),
        },
    }
}

async fn fetch(release: Release, folder: PathBuf, progress: Progress) -> Result<(), String> {
    let tell = |text: String| *progress.lock().unwrap_or_else(PoisonError::into_inner) = text;
    files::make_folder(&folder).map_err(|error| error.to_string())?;
    let temporary = folder.join(".fetching");
    let (sha256, wanted) = match resolve(&release)? {
        Release::Url { url, sha256 } => {
            (download(&url, &temporary, &tell).await?, Some(sha256.to_ascii_lowercase()))
        }
        Release::Path { path, sha256 } => {
            tell(format!("copying {}", path.display()));
            let wanted = sha256.map(|sha256| sha256.to_ascii_lowercase());
            (copy(path, temporary.clone()).await?, wanted)
        }
        Release::Pinned => return Err("the pinned release leads to itself".to_owned()),
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != sha256) {
        files::remove(&temporary).map_err(|error| error.to_string())?;
        return Err(format!("its SHA-256 is {sha256} instead of {wanted}; it was not used"));
    }
    tell("asking it for its version".to_owned());
    let place = folder.join(&sha256);
    files::make_folder(&place).map_err(|error| error.to_string())?;
    let path = place.join("k3s");
    let fail = |error: std::io::Error| format!("cannot install {}: {error}", path.display());
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).map_err(fail)?;
    fs::rename(&temporary, &path).map_err(fail)?;
    let note = ask(key(&release), path.clone(), sha256).await?;
    let text = serde_json::to_vec(&note).map_err(|error| error.to_string())?;
    files::write(&folder.join("current.json"), 0o600, &text).map_err(|error| error.to_string())
}

fn resolve(release: &Release) -> Result<Release, String> {
    match release {
        Release::Pinned => pinned(std::env::consts::ARCH).ok_or_else(|| {
            format!(
                "no K3s release is known for {}; set `[k3s] binary`, or `url` and `sha256`",
                std::env::consts::ARCH
            )
        }),
        Release::Url { sha256, .. } | Release::Path { sha256: Some(sha256), .. }
            if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Err("`sha256` must be the 64 hexadecimal digits of the binary's SHA-256".to_owned())
        }
        other => Ok(other.clone()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "copying a large file blocks, and this is the Linux port"
)]
async fn copy(source: PathBuf, target: PathBuf) -> Result<String, String> {
    let work = move || -> Result<String, String> {
        let shown = source.display();
        let meta =
            fs::metadata(&source).map_err(|error| format!("cannot read {shown}: {error}"))?;
        if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
            return Err(format!("{shown} is not an executable file"));
        }
        files::remove(&target).map_err(|error| error.to_string())?;
        fs::copy(&source, &target).map_err(|error| format!("cannot copy {shown}: {error}"))?;
        fs::File::open(&target)
            .and_then(|file| file.sync_all())
            .map_err(|error| format!("cannot sync the copy: {error}"))?;
        // Of the copy, since the source may have changed meanwhile.
        files::sha256(&target)
            .map_err(|error| error.to_string())?
            .ok_or_else(|| "the copy is gone".to_owned())
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

async fn download(url: &str, target: &Path, tell: &impl Fn(String)) -> Result<String, String> {
    crate::kube::provide();
    let fail =
        |error: reqwest::Error| format!("cannot download {url}: {}", crate::kube::chain(&error));
    let client = reqwest::Client::builder()
        .connect_timeout(STALL)
        .read_timeout(STALL)
        .build()
        .map_err(fail)?;
    let answer =
        client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(fail)?;
    let total = answer.content_length();
    let broken = |error: std::io::Error| format!("cannot write {}: {error}", target.display());
    let mut file = tokio::fs::File::create(target).await.map_err(broken)?;
    let (mut hash, mut done) = (Sha256::new(), 0_u64);
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(fail)?;
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(broken)?;
        done += chunk.len() as u64;
        let of = total.map(|total| format!(" of {:.1}", mebibytes(total))).unwrap_or_default();
        tell(format!("downloading, {:.1}{of} MiB", mebibytes(done)));
    }
    file.sync_all().await.map_err(broken)?;
    Ok(hex::encode(hash.finalize()))
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn ask(release: String, path: PathBuf, sha256: String) -> Result<Note, String> {
    let program = path.display().to_string();
    let version = must(&program, &["--version"])
        .await
        .map_err(|error| format!("it does not run here: {error}"))?;
    let Some(parsed) = Version::parse(&version) else {
        return Err(format!(
            "it does not say a K3s version but {:?}",
            version.trim().chars().take(80).collect::<String>()
        ));
    };
    if !parsed.is_usable() {
        return Err(format!("it is {parsed}, and the oldest that is run is v1.{OLDEST_MINOR}"));
    }
    let version = parsed.text;
    let mut found = Vec::new();
    for verb in ["server", "agent"] {
        let said = run(&program, &[verb, "--help"], "").await.map_err(|error| error.to_string())?;
        found.push(flags(&format!("{}\n{}", said.out, said.err)));
    }
    let agent_flags = found.pop().unwrap_or_default();
    let server_flags = found.pop().unwrap_or_default();
    Ok(Note { release, path, sha256, version, server_flags, agent_flags })
}
