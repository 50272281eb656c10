//! The envelope: round trips, newer formats, damaged bytes, and files that must be readable for ever. Pure but for reading those.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;

use super::examples;
use super::fixture::World;
use super::generator::{command, outcome};
use crate::apply::codec::{
    DecodeError, FORMAT, decode_outcome, decode_proposal, decode_state, encode_outcome,
    encode_proposal, encode_state,
};

/// Set to write the files anew: only ever for a kind that has none yet.
const REGENERATE: &str = "SKEIN_REGENERATE_GOLDEN";

fn golden(format: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{format}"))
}

/// Reads a golden file by the kind that its name begins with, and writes it in the newest format.
fn rewritten(file: &str, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    match file.split('-').next() {
        Some("command") => decode_proposal(bytes).map(|p| encode_proposal(&p)),
        Some("outcome") => decode_outcome(bytes).map(|o| encode_outcome(&o)),
        _ => decode_state(bytes).map(|s| encode_state(&s)),
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn what_was_ever_written_is_read() {
    for format in 1..=FORMAT {
        let mut files = 0;
        for entry in std::fs::read_dir(golden(format)).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_stem().unwrap().to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).unwrap();
            let again = rewritten(&file, &bytes).unwrap_or_else(|e| panic!("{file}: {e:?}"));
            if format == FORMAT {
                assert_eq!(json(&again), json(&bytes), "{file} is written differently now");
            }
            assert_eq!(rewritten(&file, &again).unwrap(), again);
            files += 1;
        }
        assert!(files > 30, "golden files of format {format} are missing");
    }
}

#[test]
fn each_kind_has_a_golden_file_of_the_newest_format() {
    let folder = golden(FORMAT);
    let regenerate = std::env::var_os(REGENERATE).is_some();
    if regenerate {
        eprintln!("WARNING: {REGENERATE} is set: golden files are written, not checked.");
        eprintln!(
            "WARNING: a changed file means that older daemons cannot read newer ones' bytes."
        );
        std::fs::create_dir_all(&folder).unwrap();
    }
    for (file, bytes) in examples::all() {
        let path = folder.join(format!("{file}.json"));
        if regenerate {
            let pretty = serde_json::to_string_pretty(&json(&bytes)).unwrap();
            std::fs::write(&path, pretty + "\n").unwrap();
            continue;
        }
        let kept = std::fs::read(&path).unwrap_or_else(|e| {
            panic!("{file} has no golden file ({e}): run this test with {REGENERATE}=1")
        });
        if !file.starts_with("state") {
            assert_eq!(json(&kept), json(&bytes), "{file} is written differently now");
        }
    }
}

#[test]
fn another_format_is_refused_with_a_reason() {
    let outcome = br#"{"v":2,"body":{"outcome":"done","change":{"made":"nothing"}}}"#;
    let e = decode_outcome(outcome).unwrap_err();
    assert!(matches!(e, DecodeError::Format { found: 2, .. }));
    let said = e.to_string();
    assert!(said.contains("format 2") && said.contains("upgrade"), "{said}");
    assert!(matches!(
        decode_state(br#"{"v":0,"body":{}}"#),
        Err(DecodeError::Format { found: 0, .. })
    ));
    assert!(matches!(decode_state(b"{}"), Err(DecodeError::Envelope { .. })));
    assert!(matches!(
        decode_proposal(br#"{"v":1,"body":{"do":"fly"}}"#),
        Err(DecodeError::Body { format: 1, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn proposals_survive_the_envelope(command in command(), request in any::<u128>(), by in ".{0,30}") {
        let mut p = World::empty().propose(request, command);
        p.by = by;
        // A payload that is nested too deep for a reader is refused by it, not misread.
        match decode_proposal(&encode_proposal(&p)) {
            Ok(read) => prop_assert_eq!(read, p),
            Err(e) => prop_assert!(false, "{e:?}"),
        }
    }

    #[test]
    fn outcomes_survive_the_envelope(outcome in outcome()) {
        prop_assert_eq!(decode_outcome(&encode_outcome(&outcome)).unwrap(), outcome);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_proposal(&bytes);
        let _ = decode_outcome(&bytes);
        let _ = decode_state(&bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(at in 0usize..60_000, with in any::<u8>(), cut in any::<bool>()) {
        for (kind, mut bytes) in examples::all() {
            let at = at % bytes.len();
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] = with;
            }
            let _ = rewritten(&kind, &bytes);
        }
    }

    #[test]
    fn fractions_in_events_are_the_same_on_every_replica(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        let mut w = World::fleet(1);
        w.ok(crate::apply::Command::Note {
            kind: "system.test".into(),
            severity: crate::model::Severity::Low,
            node: None,
            cluster: None,
            payload: serde_json::json!({ "x": number }),
        });
        let read = decode_state(&encode_state(&w.state)).unwrap();
        prop_assert_eq!(read.hash(), w.state.hash());
    }
}
