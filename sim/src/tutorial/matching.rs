//! Whether an output is as expected. Pure.
//!
//! Runs of white space compare equal and empty lines do not count. What may vary is written `<address>`, `<time>`, `<id>` or
//! `<duration>`. With a name, as in `<vip-address>`, it is the same value wherever the name stands, also in a command, and
//! no other name's value.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// What named places turned out to hold.
pub type Names = BTreeMap<String, String>;

/// Ids have at least so many characters: short ones are words.
const ID_MIN: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Address,
    Time,
    Id,
    Duration,
}

impl Kind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Address, "address"),
        (Self::Time, "time"),
        (Self::Id, "id"),
        (Self::Duration, "duration"),
    ];

    fn may_hold(self, c: char) -> bool {
        match self {
            Self::Address => c.is_ascii_hexdigit() || ".:/".contains(c),
            Self::Time => c.is_ascii_digit() || "-:.TZ".contains(c),
            Self::Id => c.is_ascii_alphanumeric() || "-_+/=".contains(c),
            Self::Duration => c.is_ascii_alphanumeric() || ". ".contains(c),
        }
    }

    fn fits(self, text: &str) -> bool {
        match self {
            Self::Address => text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok(),
            Self::Time => humantime::parse_rfc3339(text).is_ok(),
            Self::Id => text.len() >= ID_MIN,
            Self::Duration => is_duration(text),
        }
    }
}

/// As Skein and kubectl write them: `3 s`, `2 min`, `4m12s`, `0.35 ms`.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if after.len() == rest.len() || rest.starts_with('.') {
            return false;
        }
        let unit = after.strip_prefix(' ').unwrap_or(after);
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        if !["ms", "s", "m", "min", "h", "d", "days"].contains(&&unit[..end]) {
            return false;
        }
        rest = &unit[end..];
    }
    !text.is_empty()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Vary(Kind, Option<&'a str>),
}

/// Reads the inside of `<...>`: a kind, or a name and a kind.
fn place(inside: &str) -> Option<Part<'_>> {
    let named = |name: &str| {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !name.is_empty() && name.bytes().all(fine)
    };
    Kind::ALL.iter().find_map(|(kind, word)| {
        if inside == *word {
            return Some(Part::Vary(*kind, None));
        }
        let name = inside.strip_suffix(word)?.strip_suffix('-')?;
        named(name).then_some(Part::Vary(*kind, Some(inside)))
    })
}

fn parts(line: &str) -> Vec<Part<'_>> {
    let mut found = Vec::new();
    let (mut rest, mut from) = (line, 0);
    while let Some(at) = rest[from..].find('<').map(|i| i + from) {
        let end = rest[at..].find('>').map(|i| i + at);
        match end.and_then(|end| Some((end, place(&rest[at + 1..end])?))) {
            Some((end, vary)) => {
                if at > 0 {
                    found.push(Part::Text(&rest[..at]));
                }
                found.push(vary);
                (rest, from) = (&rest[end + 1..], 0);
            }
            None => from = at + 1,
        }
    }
    if !rest.is_empty() {
        found.push(Part::Text(rest));
    }
    found
}

fn fits(parts: &[Part<'_>], text: &str, names: &Names) -> Option<Names> {
    let Some((first, rest)) = parts.split_first() else {
        return text.is_empty().then(|| names.clone());
    };
    let (kind, name) = match first {
        Part::Text(words) => return fits(rest, text.strip_prefix(words)?, names),
        Part::Vary(kind, name) => (*kind, *name),
    };
    if let Some(known) = name.and_then(|name| names.get(name)) {
        return fits(rest, text.strip_prefix(known.as_str())?, names);
    }
    let longest = text.find(|c| !kind.may_hold(c)).unwrap_or(text.len());
    (1..=longest).rev().find_map(|end| {
        let value = &text[..end];
        if !kind.fits(value) {
            return None;
        }
        let mut names = names.clone();
        if let Some(name) = name {
            if names.values().any(|other| other == value) {
                return None;
            }
            names.insert(name.to_owned(), value.to_owned());
        }
        fits(rest, &text[end..], &names)
    })
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn lines<'a>(text: impl Iterator<Item = &'a str>) -> Vec<String> {
    text.map(squeeze).filter(|line| !line.is_empty()).collect()
}

/// Compares an output with what was expected; returns the names with those that were met first here.
///
/// # Errors
/// In words, with the first line that differs.
pub fn compare(expected: &[String], output: &str, names: &Names) -> Result<Names, String> {
    let expected = lines(expected.iter().map(String::as_str));
    let seen = lines(output.lines());
    let mut names = names.clone();
    for (i, wanted) in expected.iter().enumerate() {
        let Some(line) = seen.get(i) else {
            return Err(format!("expected: {wanted}\nseen:     the end of the output"));
        };
        match fits(&parts(wanted), line, &names) {
            Some(more) => names = more,
            None => {
                let wanted = fill(wanted, &names).unwrap_or_else(|_| wanted.clone());
                return Err(format!("expected: {wanted}\nseen:     {line}"));
            }
        }
    }
    match seen.get(expected.len()) {
        Some(line) => Err(format!("expected: the end of the output\nseen:     {line}")),
        None => Ok(names),
    }
}

/// Puts known values where their names stand.
///
/// # Errors
/// With a name that has no value yet.
pub fn fill(command: &str, names: &Names) -> Result<String, String> {
    let mut filled = String::new();
    for part in parts(command) {
        match part {
            Part::Text(words) => filled.push_str(words),
            Part::Vary(_, Some(name)) => {
                let value = names.get(name).ok_or_else(|| format!("<{name}> was not seen yet"))?;
                filled.push_str(value);
            }
            Part::Vary(_, None) => return Err("what may vary needs a name in a command".into()),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(expected: &str, output: &str) -> Result<Names, String> {
        compare(&[expected.to_owned()], output, &Names::new())
    }

    #[test]
    fn only_what_is_marked_may_vary() {
        for (expected, good, bad) in [
            ("held by <address>", "held  by fd00::1", "held by n1"),
            ("at https://[<address>]:6443", "at https://[fd00::1]:6443", "at https://fd00::1:6443"),
            ("<address>:7443", "10.77.0.1:7443", "10.77.0.1:7444"),
            ("net <address> ok", "net 10.90.0.0/20 ok", "net 10.90.0.0/33 ok"),
            ("<time> low", "2026-11-25T23:28:52.123Z low", "yesterday low"),
            ("(for <duration>)", "(for 3 s)", "(for ever)"),
            ("n1 Ready <none> <duration> v1", "n1 Ready <none> 4m12s v1", "n1 Ready <none> 4x v1"),
            ("wg-sdwan-<id> up", "wg-sdwan-1a2b3c up", "wg-sdwan-1 up"),
            ("skein join <id>", "skein join skein1_aZ09", "skein join no!"),
            ("active", "  active ", "inactive"),
        ] {
            assert!(same(expected, good).is_ok(), "{expected}: {good}: {:?}", same(expected, good));
            assert!(same(expected, bad).is_err(), "{expected}: {bad}");
        }
    }

    #[test]
    fn lines_may_be_neither_missing_nor_more() {
        let two = ["one".to_owned(), "two".to_owned()];
        assert!(compare(&two, "one\n\n  two \n", &Names::new()).is_ok());
        for output in ["one", "one\ntwo\nthree", "two\none", ""] {
            assert!(compare(&two, output, &Names::new()).is_err(), "{output}");
        }
        assert!(compare(&[], "", &Names::new()).is_ok());
        assert!(compare(&[], "a word", &Names::new()).is_err());
    }

    #[test]
    fn a_name_is_one_value_and_no_other_names() {
        let names = same("<vip-address> of <n1-address>", "fd00::100 of fd00::1").unwrap();
        let again = |output: &str| compare(&["on <vip-address>".into()], output, &names);
        assert!(again("on fd00::100").is_ok());
        assert!(again("on fd00::1").is_err() && again("on fd00::1001").is_err());
        assert!(same("<vip-address> of <n1-address>", "fd00::1 of fd00::1").is_err());
        assert_eq!(fill("ping <vip-address> <none>", &names).unwrap(), "ping fd00::100 <none>");
        assert!(
            fill("ping <pod-address>", &names).is_err() && fill("ping <address>", &names).is_err()
        );
    }
}
