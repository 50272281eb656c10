//! What a run looks like over time: leaders, holders, faults, and how clients fared. Pure.

use serde::Serialize;

/// A stretch of time in a lane of the picture, in milliseconds of virtual time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// The machine.
    pub machine: usize,
    /// What it is: `up`, `paused`, `off`, `leads`, `holds`, or a fault's kind.
    pub kind: String,
    /// More of it, such as a VIP's name.
    pub detail: String,
    /// From when.
    pub from_ms: u64,
    /// To when.
    pub to_ms: u64,
}

/// An answer that a client got through a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// When.
    pub at_ms: u64,
    /// Through which cluster's VIP.
    pub cluster: String,
    /// `yes`, `refused` or `silence`.
    pub how: &'static str,
}

/// A run over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Story {
    /// How many machines there are.
    pub machines: usize,
    /// When the fleet was made and events began, in milliseconds of virtual time.
    pub made_ms: u64,
    /// How long it was, in milliseconds of virtual time.
    pub length_ms: u64,
    /// What happened when.
    pub stretches: Vec<Stretch>,
    /// How clients fared.
    pub reached: Vec<Reached>,
}

/// How something stands at a moment, to be told from how it stood before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// The machine.
    pub machine: usize,
    /// See [`Stretch::kind`].
    pub kind: String,
    /// See [`Stretch::detail`].
    pub detail: String,
}

impl Story {
    /// Takes in all that is so at a moment: what was so a moment ago goes on, and the rest begins.
    pub fn moment(&mut self, before_ms: u64, at_ms: u64, now: &[Now]) {
        for item in now {
            let open = self.stretches.iter_mut().rev().find(|s| {
                s.machine == item.machine && s.kind == item.kind && s.detail == item.detail
            });
            match open {
                Some(stretch) if stretch.to_ms >= before_ms => stretch.to_ms = at_ms,
                _ => self.stretches.push(Stretch {
                    machine: item.machine,
                    kind: item.kind.clone(),
                    detail: item.detail.clone(),
                    from_ms: at_ms,
                    to_ms: at_ms,
                }),
            }
        }
        self.length_ms = self.length_ms.max(at_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_one_stretch_and_what_comes_back_another() {
        let mut story = Story::default();
        let leads = |m| Now { machine: m, kind: "leads".into(), detail: String::new() };
        story.moment(0, 100, &[leads(1)]);
        story.moment(100, 200, &[leads(1)]);
        story.moment(200, 300, &[leads(2)]);
        story.moment(300, 400, &[leads(1)]);
        let spans: Vec<_> =
            story.stretches.iter().map(|s| (s.machine, s.from_ms, s.to_ms)).collect();
        assert_eq!(spans, [(1, 100, 200), (2, 300, 300), (1, 400, 400)]);
    }
}
