//! An observer that runs in a host, and what it has printed so far. Shell.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lab::{Lab, now, wait};
use super::record::{Clock, Record};

/// An observer at work.
pub(super) struct Watch {
    child: Child,
    marks: ChildStdin,
    record: Arc<Mutex<Record>>,
    reader: JoinHandle<()>,
}

fn held(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Starts an observer in a host.
    pub(super) fn start(lab: &Lab, host: &str, args: &[String]) -> Result<Self, String> {
        let mut full = vec!["observe"];
        full.extend(args.iter().map(String::as_str));
        let mut child = lab
            .own(host, &full)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("the observer: {e}"))?;
        let (Some(marks), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the observer has no pipes".into());
        };
        let record = Arc::new(Mutex::new(Record::default()));
        let reader = std::thread::spawn({
            let record = record.clone();
            move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Ok(line) = serde_json::from_str(&line) {
                        held(&record).add(line);
                    }
                }
            }
        });
        Ok(Self { child, marks, record, reader })
    }

    /// Says that something happens now.
    pub(super) fn mark(&mut self, name: &str) -> Result<(), String> {
        writeln!(self.marks, "{name}").map_err(|e| format!("the observer: {e}"))
    }

    fn calm(&self, clocks: &[Clock], quiet: Duration) -> Result<(), String> {
        let quiet = u64::try_from(quiet.as_micros()).unwrap_or(u64::MAX);
        let calm = held(&self.record).calm(clocks, quiet);
        if calm { Ok(()) } else { Err("something does not answer yet".into()) }
    }

    /// Waits until every clock has been answered for a while, at least for `least`; tells whether it came to that.
    pub(super) fn until_calm(
        &self,
        clocks: &[Clock],
        (least, quiet, most): (Duration, Duration, Duration),
    ) -> Result<(), String> {
        let from = now() + least;
        wait("every clock to be answered", most, || {
            if now() < from {
                return Err("it is too early to tell".into());
            }
            self.calm(clocks, quiet)
        })
    }

    /// Ends the observer and returns everything that it saw.
    pub(super) fn end(mut self) -> Result<Record, String> {
        drop(self.marks);
        let status = self.child.wait().map_err(|e| format!("the observer: {e}"))?;
        let _ = self.reader.join();
        if !status.success() {
            return Err(format!("the observer ended with {status}"));
        }
        Ok(std::mem::take(&mut held(&self.record)))
    }
}
