//! What a step is called, and whether it is the one that was ordered as the last. Pure.

use std::collections::BTreeMap;

use raft_store::apply::{Command, codec};
use raft_store::disk::{Loaded, MetaKey, Record, Write};
use raft_store::raft::committed_index;

/// A step: its kind, and what it did. Names are the same in each run, so they hold neither ids nor times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: &'static str,
    pub(super) what: String,
}

impl Step {
    pub(super) fn new(kind: &'static str, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }

    /// As it is written down.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.kind, self.what)
    }
}

/// Tells whether the last of these lines is the step of an order such as `2 host Start`: the second of this name.
pub(super) fn due(lines: &str, order: &str) -> bool {
    let Some((nth, wanted)) = order.trim().split_once(' ') else { return false };
    let last = lines.lines().next_back() == Some(wanted);
    let count = lines.lines().filter(|line| *line == wanted).count();
    last && nth.parse() == Ok(count)
}

/// Names a command; what is said of this node is told from what is said of another.
pub(super) fn name_command(command: &Command, own: u64) -> String {
    let value = serde_json::to_value(command).unwrap_or_default();
    let mut words: Vec<&str> = vec![value["do"].as_str().unwrap_or("command")];
    words.extend(["phase", "step", "kind"].iter().filter_map(|key| value[*key].as_str()));
    if value["done"] == false {
        words.push("waits");
    }
    let whose = ["node", "to"].iter().find_map(|key| value[*key].as_u64());
    words.extend(whose.map(|node| if node == own { "(own)" } else { "(other)" }));
    words.join(" ")
}

fn name_record(bytes: &[u8], own: u64) -> Option<String> {
    let record = Record::from_bytes(bytes).ok()?;
    match record.kind {
        1 => {
            let proposal = codec::decode_proposal(&record.payload).ok();
            proposal.map(|p| name_command(&p.command, own))
        }
        2 => Some("membership".into()),
        _ => None,
    }
}

/// What is known of a log, so that batches can be told as steps.
pub(super) struct Watched {
    own: u64,
    entries: BTreeMap<u64, String>,
    committed: Option<u64>,
}

impl Watched {
    /// Starts from what a log holds that belongs to `owner`, which ends in `node=` and its id.
    pub(super) fn new(owner: &str, loaded: &Loaded) -> Self {
        let own = owner.rsplit_once("node=").and_then(|(_, id)| id.parse().ok()).unwrap_or(0);
        let name = |(index, bytes): (&u64, &Vec<u8>)| Some((*index, name_record(bytes, own)?));
        let entries = loaded.log.iter().filter_map(name).collect();
        let committed = loaded.meta.get(&MetaKey::Committed);
        let committed = committed.and_then(|bytes| committed_index(bytes));
        Self { own, entries, committed }
    }

    /// The steps that a batch will have been once it is durable.
    pub(super) fn steps(&mut self, batch: &[Write]) -> Vec<Step> {
        let mut steps = Vec::new();
        for write in batch {
            match write {
                Write::Append { index, bytes } => {
                    if let Some(name) = name_record(bytes, self.own) {
                        steps.push(Step::new("logged", name.clone()));
                        self.entries.insert(*index, name);
                    }
                }
                Write::TruncateFrom(index) => drop(self.entries.split_off(index)),
                Write::Meta(MetaKey::Committed, bytes) => {
                    let to = committed_index(bytes);
                    if to > self.committed {
                        let new = |index: &u64| Some(*index) > self.committed && Some(*index) <= to;
                        let new = self.entries.iter().filter(|(index, _)| new(index));
                        steps.extend(new.map(|(_, name)| Step::new("committed", name.clone())));
                        self.committed = to;
                    }
                }
                Write::Meta(..) | Write::PurgeTo(_) => {}
            }
        }
        steps
    }
}

/// Names a file without what is drawn at random: `founding-<incarnation>.sealed` is `founding.sealed`.
pub(super) fn name_file(name: &str) -> String {
    match (name.split_once('-'), name.rsplit_once('.')) {
        (Some((stem, _)), Some((_, extension))) => format!("{stem}.{extension}"),
        _ => name.to_owned(),
    }
}

/// Names a value by its variant.
pub(super) fn variant(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_store::model::{DrainStep, NodeId};

    #[test]
    fn the_nth_of_a_name_is_due_once() {
        assert!(due("host Mark\nhost Start\nhost Start\n", "2 host Start"));
        assert!(!due("host Start\nhost Start\nhost Start\n", "2 host Start"));
        assert!(!due("host Start\nhost Start\nhost Mark\n", "2 host Start"));
        assert!(!due("host Start\n", "2 host Start"));
        assert!(!due("host Start now\n", "1 host Start"));
        assert!(!due("host Start\n", ""));
    }

    #[test]
    fn names_hold_nothing_that_differs_from_run_to_run() {
        let drained = |node, done| Command::ReportDrain {
            node: NodeId(node),
            epoch: 7,
            step: DrainStep::Cordon,
            done,
            message: None,
        };
        assert_eq!(name_command(&drained(1, true), 1), "report_drain cordon (own)");
        assert_eq!(name_command(&drained(2, false), 1), "report_drain cordon waits (other)");
        assert_eq!(name_file("founding-0a1b-7.sealed"), "founding.sealed");
        assert_eq!(name_file("tls.key"), "tls.key");
        assert_eq!(variant(&Some(3)), "Some");
    }

    #[test]
    fn an_entry_is_logged_and_then_committed_once() {
        let undrain = Command::Undrain { node: "n1".parse().unwrap() };
        let proposal = raft_store::apply::Proposal {
            request: serde_json::from_str("\"00000000-0000-0000-0000-000000000001\"").unwrap(),
            at: raft_store::model::UnixMillis(1),
            by: "x".into(),
            command: undrain,
        };
        let append = |index, kind| {
            let payload = codec::encode_proposal(&proposal);
            let record = Record { term: 1, leader: 1, kind, payload, index };
            Write::Append { index, bytes: record.to_bytes() }
        };
        // A protobuf message with the index as its third number.
        let committed = |index: u8| Write::Meta(MetaKey::Committed, vec![0x18, index]);
        let mut watched = Watched::new("fleet=x node=4", &Loaded::default());
        assert_eq!(watched.own, 4);
        let lines = |steps: Vec<Step>| steps.iter().map(Step::line).collect::<Vec<_>>();
        assert!(lines(watched.steps(&[append(1, 0)])).is_empty(), "a blank entry is no step");
        assert_eq!(lines(watched.steps(&[append(2, 1)])), ["logged undrain"]);
        assert_eq!(lines(watched.steps(&[committed(2)])), ["committed undrain"]);
        assert!(watched.steps(&[committed(2)]).is_empty());
        watched.steps(&[append(3, 1), Write::TruncateFrom(3)]);
        assert!(watched.steps(&[committed(3)]).is_empty());
    }
}
