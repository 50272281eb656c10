//! The lab as a picture: `./lab picture --out FILE`. Shell.
//!
//! | module | what |
//! |---|---|
//! | `pty` | a command under a terminal of its own |
//! | [`screen`] | what a terminal shows of what was written; pure |
//! | [`film`] | each line once, for as long as it stands; pure |
//! | [`svg`] | drawn; pure |

pub mod film;
mod pty;
pub mod screen;
pub mod svg;

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::bench::lab::{Lab, now};
use crate::lab::say;
use film::Reel;
use screen::Size;
use svg::Labels;

/// `lab picture`.
#[derive(Debug, Args)]
pub struct PictureArgs {
    /// Where the SVG goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A command of the story.
struct Scene {
    /// The lab's verb.
    verb: &'static str,
    /// The host that then gets the VIP by itself, which is waited for.
    heir: Option<&'static str>,
}

const fn verb(verb: &'static str) -> Scene {
    Scene { verb, heir: None }
}

const STORY: [Scene; 7] = [
    verb("up --k3s rehearsal"),
    verb("status"),
    verb("drain n1"),
    verb("exec n4 -- skein vip ls"),
    Scene { verb: "kill n2", heir: Some("n3") },
    verb("exec n4 -- skein vip show lab-api"),
    verb("exec n4 -- skein status"),
];
const TITLE: &str = "Skein: four hosts on one machine";
const CAPTION: &str = "A real run, recorded by ./lab picture. K3s is the rehearsal, a stand-in. Waits above 1.5 s are shortened.";

/// Where the VIP is asked for: a host that outlives the story.
const WITNESS: &str = "n4";
const ROWS: NonZeroU16 = NonZeroU16::new(28).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(100).unwrap();
/// No more frames than these.
const STEP: Duration = Duration::from_millis(100);
/// What is shown of a wait.
const WAIT: Duration = Duration::from_millis(1500);
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// How long the VIP may take to move.
const MOVE_MAX: Duration = Duration::from_secs(30);
/// Typing: a key, and the moment before return.
const KEY: Duration = Duration::from_millis(50);
const RETURN: Duration = Duration::from_millis(400);

/// Records the story in a lab that is made for it and removed in the end, also after a failure.
///
/// # Errors
/// When a command fails, the VIP does not go where the story says, or the file cannot be written.
pub(crate) fn run(name: &str, args: &PictureArgs) -> Result<u8, String> {
    let size = Size { rows: ROWS, columns: COLUMNS };
    let lab = Lab::unmade(name)?;
    let told = tell(&lab, name, size);
    drop(lab);
    let film = film::film(&screen::frames(told?.written(), size, STEP));
    let svg = svg::svg(&film, size, Labels { title: TITLE, caption: CAPTION });
    let out = args.out.display();
    std::fs::write(&args.out, &svg).map_err(|e| format!("{out}: {e}"))?;
    say(format!("{out}: {} kB", svg.len().div_ceil(1000)));
    Ok(0)
}

fn tell(lab: &Lab, name: &str, size: Size) -> Result<Reel, String> {
    let call = if name == "lab" { "./lab".to_owned() } else { format!("./lab --name {name}") };
    let mut reel = Reel::default();
    for scene in &STORY {
        let line = format!("{call} {}", scene.verb);
        say(&line);
        enter(&mut reel, &line);
        perform(lab, &mut reel, scene, size)?;
    }
    reel.write("\x1b[32m$\x1b[0m ", Duration::ZERO);
    Ok(reel)
}

/// Types a line.
fn enter(reel: &mut Reel, line: &str) {
    stand(reel, "\x1b[32m$\x1b[0m \x1b[1m", RETURN);
    for key in line.chars() {
        stand(reel, key.encode_utf8(&mut [0; 4]), KEY);
    }
    stand(reel, "\x1b[0m", RETURN);
    reel.write("\r\n", Duration::ZERO);
}

/// Shows what a verb prints, and how long it and what follows took.
fn perform(lab: &Lab, reel: &mut Reel, scene: &Scene, size: Size) -> Result<(), String> {
    let words: Vec<&str> = scene.verb.split(' ').collect();
    let take = pty::record(&lab.command(&words), size, COMMAND_MAX)?;
    let text: Vec<u8> = take.output.iter().flat_map(|w| w.bytes.clone()).collect();
    if !take.status.success() {
        let said = String::from_utf8_lossy(&text);
        return Err(format!("{}: {}: {}", scene.verb, take.status, said.trim()));
    }
    reel.append(&take.output, WAIT);
    let took = format!("took {}", spoken(take.took));
    if let Some(host) = scene.heir {
        let moved = arrival(lab, host)?;
        reel.write(&dim(&took), moved.min(WAIT));
        reel.write(
            &dim(&format!("; {host} holds lab-api {} later", spoken(moved))),
            Duration::ZERO,
        );
    } else {
        reel.write(&dim(&took), Duration::ZERO);
    }
    stand(reel, "\r\n\r\n", pause(&text));
    Ok(())
}

fn dim(text: &str) -> String {
    format!("\x1b[2m{text}\x1b[0m")
}

/// Writes something and gives people the time to read it; the lab has that time, too, so that what follows fits.
fn stand(reel: &mut Reel, text: &str, stands: Duration) {
    reel.write(text, stands);
    std::thread::sleep(stands);
}

/// Waits until the VIP is at a host, and says how long that took.
fn arrival(lab: &Lab, host: &str) -> Result<Duration, String> {
    let begun = now();
    loop {
        // Nobody may answer for a moment: the host that was lost may have led.
        let seen = lab.ask(WITNESS, &["vip", "show", "lab-api"]);
        let seen = seen.map(|vip| vip["holder"].as_str().unwrap_or("nobody").to_owned());
        match seen {
            Ok(holder) if holder == host => return Ok(begun.elapsed()),
            seen if begun.elapsed() > MOVE_MAX => {
                let seen = seen.map(|holder| format!("{holder} has it"));
                return Err(format!(
                    "lab-api was to move to {host}: {}",
                    seen.unwrap_or_else(|e| e)
                ));
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// How long people take to read this.
fn pause(text: &[u8]) -> Duration {
    let lines = text.iter().filter(|b| **b == b'\n').count().min(20);
    Duration::from_secs(1) + Duration::from_millis(120) * u32::try_from(lines).unwrap_or_default()
}

fn spoken(d: Duration) -> String {
    if d < Duration::from_secs(1) {
        return format!("{} ms", d.as_millis());
    }
    format!("{:.1} s", d.as_secs_f64())
}
