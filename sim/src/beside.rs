//! Programs that lie beside this one, and were built with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Finds a program of Skein in this program's folder, and refuses one of another commit.
///
/// # Errors
/// Says what is wrong with the program and how to build it; `what` failed for that reason.
pub fn beside(name: &str, what: &str) -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let program = exe.with_file_name(name);
    let out = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
    let version = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let checked = match version {
        Ok(version) => same_commit(&program, &version),
        Err(e) => Err(format!("{}: {e}", program.display())),
    };
    let next = if program.parent().is_some_and(|dir| dir.ends_with("release")) {
        "build all: cargo build --release"
    } else {
        "build all: cargo build"
    };
    checked.map_err(|why| crate::lab::refusal(what, why, next))?;
    Ok(program)
}

fn same_commit(program: &Path, version: &str) -> Result<(), String> {
    if version.contains(node::COMMIT) {
        return Ok(());
    }
    let (program, version) = (program.display(), version.trim());
    Err(format!("{program} is of another commit ({version}) than this program ({})", node::COMMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_another_commit_is_refused() {
        let skein = Path::new("/x/skein");
        assert_eq!(same_commit(skein, &format!("skein 0.1.0 ({})", node::COMMIT)), Ok(()));
        let why = same_commit(skein, "skein 0.1.0 (0123456789ab)").unwrap_err();
        assert!(why.contains("0123456789ab"), "{why}");
    }

    #[test]
    fn one_that_is_missing_is_named_with_what_builds_it() {
        let why = beside("no-such-program", "the lab was not made").unwrap_err();
        assert!(why.contains("no-such-program") && why.contains("next:  build all"), "{why}");
    }
}
