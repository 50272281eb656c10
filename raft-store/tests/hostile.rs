//! Frames from a peer that lies: each ends as a refusal or an answer, and Raft lives on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Fleet, PATIENCE, note};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use raft_store::disk::Record;
use raft_store::raft::{Frame, kind};

#[derive(Clone, PartialEq, prost::Message)]
struct Vote {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Append {
    #[prost(message, optional, tag = "1")]
    vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogId>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<Record>,
    #[prost(message, optional, tag = "4")]
    commit: Option<LogId>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogId {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Chunk {
    #[prost(message, optional, tag = "1")]
    vote: Option<Vote>,
    #[prost(bytes = "vec", tag = "2")]
    meta: Vec<u8>,
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(uint64, tag = "4")]
    total: u64,
    #[prost(bytes = "vec", tag = "5")]
    data: Vec<u8>,
}

/// Numbers as they occur, and at the edges.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..6, Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()]
}

fn old_vote() -> impl Strategy<Value = Vote> {
    // Of a term that has passed: a lawful newer vote would depose the leader, as it should.
    (0u64..1, number(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
        term,
        node,
        committed,
    })
}

fn log_id() -> impl Strategy<Value = LogId> {
    (number(), number(), number()).prop_map(|(term, node, index)| LogId { term, node, index })
}

fn record() -> impl Strategy<Value = Record> {
    let payload = proptest::collection::vec(any::<u8>(), 0..30);
    (number(), number(), 0u32..4, payload, number()).prop_map(
        |(term, leader, kind, payload, index)| Record { term, leader, kind, payload, index },
    )
}

fn append() -> impl Strategy<Value = Vec<u8>> {
    let entries = proptest::collection::vec(record(), 0..3);
    let parts =
        (old_vote(), proptest::option::of(log_id()), entries, proptest::option::of(log_id()));
    parts.prop_map(|(vote, previous, mut entries, commit)| {
        // Consecutive half of the time, so that more than the first check is reached.
        let first = previous.as_ref().map_or(0, |p: &LogId| p.index.wrapping_add(1));
        if first % 2 == 0 {
            for (at, entry) in (0u64..).zip(&mut entries) {
                entry.index = first.wrapping_add(at);
            }
        }
        let message = Append { vote: Some(vote), previous, entries, commit };
        prost::Message::encode_to_vec(&message)
    })
}

fn chunk() -> impl Strategy<Value = Vec<u8>> {
    let data = proptest::collection::vec(any::<u8>(), 0..40);
    let parts =
        (old_vote(), proptest::collection::vec(any::<u8>(), 0..20), number(), number(), data);
    parts.prop_map(|(vote, meta, offset, total, data)| {
        prost::Message::encode_to_vec(&Chunk { vote: Some(vote), meta, offset, total, data })
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let noise = (0u32..10, proptest::collection::vec(any::<u8>(), 0..60));
    prop_oneof![
        noise,
        (Just(kind::APPEND), append()),
        (Just(kind::SNAPSHOT), chunk()),
        (Just(kind::PROPOSE), proptest::collection::vec(any::<u8>(), 0..60)),
    ]
    .prop_map(|(kind, body)| Frame { kind, body: body.into() })
}

#[test]
fn no_frame_stops_raft() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fleet = runtime.block_on(Fleet::of(1));
    let store = fleet.store(1);
    let answered = AtomicU64::new(0);
    let config =
        ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&frame(), |frame| {
            // Votes are tried apart: a newer one deposes the leader, as it should.
            prop_assume!(frame.kind != kind::VOTE && frame.kind != kind::TRANSFER);
            let answer = runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(10), store.handle(7, frame)).await
            });
            if answer.map_err(|_| TestCaseError::fail("no answer"))?.is_ok() {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            prop_assert_eq!(store.status().stopped, None);
            Ok(())
        })
        .unwrap();
    assert!(answered.into_inner() > 50, "hardly a frame got as far as Raft");
    let (_, outcome) = runtime.block_on(store.propose(&note(1, 10), PATIENCE)).unwrap();
    assert!(outcome.result().is_ok());
}

#[test]
fn an_index_at_the_end_of_all_indexes_is_refused() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let fleet = Fleet::of(1).await;
        let store = fleet.store(1);
        let record = |index| Record { term: 1, leader: 1, kind: 0, payload: Vec::new(), index };
        for (previous, entries) in [
            (u64::MAX, vec![]),
            (u64::MAX - 1, vec![record(u64::MAX)]),
            (u64::MAX, vec![record(u64::MAX)]),
        ] {
            let message = Append {
                vote: Some(Vote { term: 9, node: 7, committed: true }),
                previous: Some(LogId { term: 9, node: 7, index: previous }),
                entries,
                commit: Some(LogId { term: 9, node: 7, index: u64::MAX }),
            };
            let body = prost::Message::encode_to_vec(&message).into();
            // Refused or answered: what counts is that Raft goes on.
            let _ = store.handle(7, Frame { kind: kind::APPEND, body }).await;
            assert_eq!(store.status().stopped, None, "previous {previous}");
        }
    });
}
