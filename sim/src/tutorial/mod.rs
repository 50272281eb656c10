//! The tutorial as a program: `./lab tutorial FILE`. Shell.
//!
//! | module | what |
//! |---|---|
//! | [`parse`] | from text to commands and what they must print; pure |
//! | [`matching`] | whether an output is as expected; pure |
//! | [`walk`] | step by step, in a lab or over a transcript; pure |
//! | `play` | in a lab |

pub mod matching;
pub mod parse;
mod play;
pub mod walk;

use std::path::PathBuf;

use clap::Args;

use crate::bench::lab::Lab;
use crate::lab::{print, say};
use parse::Tutorial;

/// `lab tutorial`.
#[derive(Debug, Args)]
pub struct TutorialArgs {
    /// The tutorial.
    file: PathBuf,
    /// What runs as K3s: auto, rehearsal, build, or a path to a K3s binary.
    #[arg(long, default_value = "auto")]
    k3s: String,
    /// A folder of image archives for pods.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Where the transcript goes [default: none is kept].
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
    /// Go on after a step that failed.
    #[arg(long)]
    go_on: bool,
    /// Leave the lab as it is in the end.
    #[arg(long)]
    keep: bool,
}

impl TutorialArgs {
    /// What is to run as K3s.
    pub(crate) fn k3s(&self) -> &str {
        &self.k3s
    }
}

/// Plays a tutorial in a lab of its own.
///
/// # Errors
/// When the file is not as it should be, the lab does not come up, or a step does not do what the file says.
pub(crate) fn run(name: &str, args: &TutorialArgs) -> Result<u8, String> {
    let file = args.file.display();
    let text = std::fs::read_to_string(&args.file).map_err(|e| format!("{file}: {e}"))?;
    let tutorial = parse::parse(&text).map_err(|e| format!("{file}: {e}"))?;
    let workers = hosts(&tutorial).saturating_sub(1).to_string();
    let mut options =
        vec!["--no-daemons", "--servers", "1", "--workers", &workers, "--k3s", &args.k3s];
    let images = args.images.as_ref().map(|dir| dir.display().to_string());
    options.extend(images.iter().flat_map(|dir| ["--images", dir]));
    let lab = Lab::up(name, &options)?;
    let mut stage = play::Live::new(&lab);
    let failures = walk::walk(&tutorial, &mut stage, args.go_on);
    let records = stage.into_records();
    if args.keep {
        say(format!("the lab stays: ./lab --name {name} down removes it"));
        std::mem::forget(lab);
    }
    if let Some(path) = &args.transcript {
        let json = serde_json::to_string_pretty(&records).map_err(|e| e.to_string())?;
        std::fs::write(path, json + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
        say(format!("transcript: {}", path.display()));
    }
    if failures.is_empty() {
        let blocks = tutorial.blocks.len();
        print(format!("{file}: {blocks} blocks, {} commands: all as it says", records.len()));
        return Ok(0);
    }
    for failure in &failures {
        say(format!("\n{file}:{}: not as it says\n{}", failure.line, failure.why));
    }
    Err(format!("{file}: {} steps are not as it says", failures.len()))
}

/// How many hosts a tutorial needs: they are numbered.
fn hosts(tutorial: &Tutorial) -> u8 {
    let steps = tutorial.blocks.iter().flat_map(|b| &b.steps);
    steps.filter_map(|s| s.host.get(1..)?.parse().ok()).max().unwrap_or(1)
}
