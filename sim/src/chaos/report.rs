//! A run as one page that needs nothing else: lanes for machines, colours for what they were, and the violation. Pure.

use std::fmt::Write as _;

use super::run::Outcome;
use super::schedule::{Act, Schedule};
use super::story::{Reached, Story, Stretch};

/// The picture's width in pixels, and where time begins in it.
const WIDTH: f64 = 1_200.0;
const LEFT: f64 = 70.0;
/// A lane's height.
const LANE: f64 = 46.0;
const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:24px;color:#1c2733;background:#fff;max-width:1280px}\
    svg{width:100%;height:auto;background:#fafbfc;border:1px solid #d7dde3}text{font:11px system-ui,sans-serif;fill:#4a5663}\
    table{border-collapse:collapse;margin:12px 0}td,th{padding:3px 10px;border-bottom:1px solid #e4e8ec;text-align:left}\
    .bad{background:#fdecea;border-left:4px solid #c62828;padding:8px 12px;white-space:pre-wrap}\
    .good{background:#e8f5e9;border-left:4px solid #2e7d32;padding:8px 12px}code{background:#f1f3f5;padding:1px 4px}\
    .key span{display:inline-block;width:12px;height:12px;margin:0 4px 0 14px;vertical-align:-1px}\
    @media(prefers-color-scheme:dark){body{background:#11161c;color:#dde3ea}svg{background:#161c23;border-color:#2c3641}\
    text{fill:#9fadbb}code{background:#1e252d}.bad{background:#3b1c1a}.good{background:#16301a}td,th{border-color:#2c3641}}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(kind: &str) -> &'static str {
    match kind {
        "up" => "#cfd8dc",
        "leads" => "#1565c0",
        "holds" => "#2e7d32",
        "paused" => "#8e24aa",
        _ => "#e65100",
    }
}

/// What a page says beside its picture.
pub struct Words<'a> {
    /// Its headline.
    pub title: String,
    /// Where and how it was, as HTML.
    pub facts: String,
    /// The command that shows it again.
    pub replay: &'a str,
    /// What a machine's lane is called.
    pub lane: &'a dyn Fn(usize) -> String,
}

/// Writes the page of a simulated run.
pub fn page(schedule: &Schedule, outcome: &Outcome, replay: &str) -> String {
    let facts = format!(
        "{:.1} virtual seconds, {} steps, {} calls judged, commit {}, trace <code>{}</code>",
        seconds(outcome.virtual_us),
        outcome.steps,
        outcome.calls,
        node::COMMIT,
        outcome.hash
    );
    let title = format!("Seed {}, profile {:?}", schedule.seed, schedule.profile);
    let lane = |machine: usize| format!("m{machine}, site {}", schedule.sites[machine]);
    page_with(schedule, outcome, &Words { title, facts, replay, lane: &lane })
}

/// Writes a page with these words.
pub fn page_with(schedule: &Schedule, outcome: &Outcome, words: &Words<'_>) -> String {
    let verdict = match &outcome.violation {
        Some(v) => format!(
            "<p class=bad><b>{}</b> at {:.3} s: {}\n{}</p>",
            escape(&v.name),
            seconds(v.at_us),
            escape(&v.why),
            escape(&v.nodes.join("\n"))
        ),
        None => "<p class=good>Nothing was violated.</p>".to_owned(),
    };
    let faults = schedule.events.iter().filter(|e| e.act.is_fault()).count();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{}</title><style>{STYLE}</style>\
         <h1>{}</h1>{verdict}<p>{} machines, {} events of which {faults} are faults, {}.<br>\
         To see it again: <code>{}</code></p>{}{}<h2>Events</h2>{}</html>\n",
        escape(&words.title),
        escape(&words.title),
        schedule.sites.len(),
        schedule.events.len(),
        words.facts,
        escape(words.replay),
        key(),
        picture(schedule, outcome, words.lane),
        events(schedule),
    )
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn key() -> String {
    let item = |kind: &str, words: &str| {
        format!("<span style=\"background:{}\"></span>{words}", colour(kind))
    };
    let all = [
        ("up", "daemon runs"),
        ("leads", "leads"),
        ("holds", "holds a VIP"),
        ("paused", "stands still"),
        ("fault", "fault"),
    ];
    let all: String = all.iter().map(|(kind, words)| item(kind, words)).collect();
    format!(
        "<p class=key>{all}<span style=\"background:#c62828\"></span>not answered through the VIP</p>"
    )
}

fn picture(schedule: &Schedule, outcome: &Outcome, lane: &dyn Fn(usize) -> String) -> String {
    let story = &outcome.story;
    let machines = schedule.sites.len();
    let bottom = LANE * machines as f64;
    let height = bottom + 70.0;
    let length = story.length_ms.max(1) as f64;
    let x = |ms: u64| LEFT + (WIDTH - LEFT - 10.0) * ms as f64 / length;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"timeline\">");
    for machine in 0..machines {
        let y = LANE * machine as f64 + LANE / 2.0;
        let _ = write!(svg, "<text x=4 y={y}>{}</text>", escape(&lane(machine)));
    }
    for stretch in &story.stretches {
        svg.push_str(&bar(stretch, &x));
    }
    svg.push_str(&faults(schedule, story, &x));
    svg.push_str(&availability(&story.reached, bottom + 14.0, &x));
    let step = (length / 10.0).max(1_000.0);
    for n in 0..=10 {
        let ms = n as f64 * step;
        if ms <= length {
            let at = LEFT + (WIDTH - LEFT - 10.0) * ms / length;
            // The last one has no room to its right.
            let anchor = if n == 10 { "end" } else { "middle" };
            let (y, s) = (height - 6.0, ms / 1_000.0);
            let _ = write!(svg, "<text x={at:.1} y={y:.1} text-anchor={anchor}>{s:.0} s</text>");
        }
    }
    if let Some(v) = &outcome.violation {
        let at = x(v.at_us / 1_000);
        let _ = write!(
            svg,
            "<line x1={at:.1} y1=0 x2={at:.1} y2={bottom} stroke=#c62828 stroke-width=2 /><text x={:.1} y=12>{}</text>",
            (at + 4.0).min(WIDTH - 120.0),
            escape(&v.name)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn bar(stretch: &Stretch, x: &impl Fn(u64) -> f64) -> String {
    let (offset, height) = match stretch.kind.as_str() {
        "up" | "paused" => (22.0, 10.0),
        "leads" => (10.0, 6.0),
        _ => (34.0, 6.0),
    };
    let y = LANE * stretch.machine as f64 + offset;
    let (from, to) = (x(stretch.from_ms), x(stretch.to_ms));
    format!(
        "<rect x={from:.1} y={y:.1} width={:.1} height={height} fill={}><title>{} {} {:.1} to {:.1} s</title></rect>",
        (to - from).max(1.0),
        colour(&stretch.kind),
        escape(&stretch.kind),
        escape(&stretch.detail),
        stretch.from_ms as f64 / 1e3,
        stretch.to_ms as f64 / 1e3,
    )
}

/// Marks each fault in the lanes that it names.
fn faults(schedule: &Schedule, story: &Story, x: &impl Fn(u64) -> f64) -> String {
    let mut svg = String::new();
    for event in schedule.events.iter().filter(|e| e.act.is_fault()) {
        let from_ms = story.made_ms + event.at_ms;
        let to_ms = from_ms + event.act.for_ms().unwrap_or(300);
        let machines: Vec<usize> = match &event.act {
            Act::Net { from, to, both, .. } => {
                from.iter().chain(to.iter().filter(|_| *both)).copied().collect()
            }
            other => serde_json::to_value(other)
                .ok()
                .and_then(|v| v["machine"].as_u64())
                .and_then(|m| usize::try_from(m).ok())
                .into_iter()
                .collect(),
        };
        for machine in machines {
            let stretch = Stretch {
                machine,
                kind: event.act.kind().to_owned(),
                detail: String::new(),
                from_ms,
                to_ms: to_ms.min(story.length_ms),
            };
            let y = LANE * machine as f64 + 2.0;
            let (from, to) = (x(stretch.from_ms), x(stretch.to_ms));
            let _ = write!(
                svg,
                "<rect x={from:.1} y={y:.1} width={:.1} height=5 fill={} opacity=.7><title>{} {:.1} to {:.1} s</title></rect>",
                (to - from).max(1.5),
                colour("fault"),
                stretch.kind,
                from_ms as f64 / 1e3,
                to_ms as f64 / 1e3,
            );
        }
    }
    svg
}

fn availability(reached: &[Reached], y: f64, x: &impl Fn(u64) -> f64) -> String {
    let mut svg = format!("<text x=4 y={:.1}>clients</text>", y + 8.0);
    for one in reached {
        let colour = if one.how == "yes" { "#2e7d32" } else { "#c62828" };
        let _ = write!(
            svg,
            "<rect x={:.1} y={y:.1} width=1.5 height=12 fill={colour}><title>{} {} at {:.1} s</title></rect>",
            x(one.at_ms),
            escape(&one.cluster),
            one.how,
            one.at_ms as f64 / 1e3
        );
    }
    svg
}

fn events(schedule: &Schedule) -> String {
    let mut rows = String::from("<table><tr><th>at<th>what<th>in full</tr>");
    for event in &schedule.events {
        let full = serde_json::to_string(&event.act).unwrap_or_default();
        let _ = write!(
            rows,
            "<tr><td>{:.1} s<td>{}<td><code>{}</code></tr>",
            event.at_ms as f64 / 1e3,
            event.act.kind(),
            escape(&full)
        );
    }
    rows + "</table>"
}
